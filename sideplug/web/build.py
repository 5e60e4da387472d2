"""Builds the static folder: the page, the device's modules, the verifier, and the sentence encoder where it is there.

The folder loads nothing from elsewhere, and speaks with clouds only: with one, where that is given. files.json names
each file with its SHA-256, so that whoever serves the folder can be held to it. Test: pytest tests/slow/test_web.py
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from importlib import resources
from pathlib import Path

from sideplug.contract.errors import InputError
from sideplug.contract.version import __version__
from sideplug.memory import weights
from sideplug.memory.verifier import WEIGHTS
from sideplug.paths import writing

LIST = "files.json"
ENCODER, VERIFIER = "encoder.safetensors", "verifier.safetensors"
EVERY_CLOUD = b"ws: wss:"  # in the page's policy: any, since it is not known which
_CLOUD = re.compile(r"wss?://[A-Za-z0-9._\-\[\]:]+")


def build(folder: Path, cloud: str = "", encoder: bool = True) -> dict[str, str]:
    """Write the static folder; return the SHA-256 of each file. cloud: the only one that the page may speak with; "":
    any. encoder: put the sentence encoder in, which must have been fetched.

    Raises InputError for a folder that holds something else, and Stopped.
    """
    if cloud and not _CLOUD.fullmatch(cloud):
        raise InputError(f"--cloud must be an address like wss://that-machine:8765, without a path, got {cloud[:80]!r}")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LIST).is_file():
        raise InputError(f"{folder} holds something else: give a folder that is empty, or that this command made")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if old.is_file():
                old.unlink()
        for file in resources.files("sideplug.web").joinpath("static").iterdir():
            data = file.read_bytes()
            if file.name == "index.html" and cloud:
                data = data.replace(EVERY_CLOUD, cloud.encode())
            (folder / file.name).write_bytes(data)
        (folder / VERIFIER).write_bytes(resources.files("sideplug.memory").joinpath(WEIGHTS).read_bytes())
        if encoder:
            shutil.copyfile(weights.encoder_path(), folder / ENCODER)
        sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
        version = hashlib.sha256("".join(sums.values()).encode()).hexdigest()[:16]
        about = {"sideplug": __version__, "version": version, "files": list(sums), "sha256": sums}
        (folder / LIST).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    return sums
