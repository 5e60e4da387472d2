"""Documents of other programs: their text, and a sentence for each that has none or is none."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from sideplug.contract.errors import DataError
from sideplug.readers import documents, read

docx = pytest.importorskip("docx", reason="pip install 'sideplug[files]'")
pypdf = pytest.importorskip("pypdf", reason="pip install 'sideplug[files]'")


def a_pdf(*pages: list[str]) -> bytes:
    """A PDF whose pages have these lines, written by hand."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>")
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for n, lines in enumerate(pages):
        drawn = "BT /F1 12 Tf 14 TL 50 780 Td " + " ".join(f"({line}) Tj T*" for line in lines) + " ET"
        page = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {5 + 2 * n} 0 R"
        objects.append(f"{page} /Resources << /Font << /F1 3 0 R >> >> >>")
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    out, places = "%PDF-1.4\n", list[int]()
    for number, each in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{each}\nendobj\n"
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n" + "".join(f"{at:010} 00000 n \n" for at in places)
    out += f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n"
    return out.encode("latin-1")


def replies(path: Path) -> list[str]:
    return [example.reply for example in read(path)]


def test_a_docx(tmp_path: Path) -> None:
    made = docx.Document()
    made.add_heading("The garden", 1)
    made.add_paragraph("Row two is dry — and so is row three.")
    table = made.add_table(rows=2, cols=2)
    for row, cells in zip(table.rows, (("row", "fern"), ("2", "maidenhair")), strict=True):
        for cell, text in zip(row.cells, cells, strict=True):
            cell.text = text
    made.add_paragraph("It rains on Friday.")
    made.save(str(tmp_path / "Garden.DOCX"))
    expected = "The garden\n\nRow two is dry — and so is row three.\n\nrow fern\n2 maidenhair\n\nIt rains on Friday."
    assert replies(tmp_path) == [expected]


def test_a_pdf(tmp_path: Path) -> None:
    bodies = ["Row one is wet.", "Row two is dry, and row three was for-", "gotten.", "Row four is new."]
    pages = [["The garden", f"page {n}", text, "kept by Ines"] for n, text in enumerate(bodies)]
    (tmp_path / "a.pdf").write_bytes(a_pdf(["Row one is wet and for-", "gotten."], []))
    told: list[str] = []
    (example,) = read(tmp_path / "a.pdf", tell=told.append)
    assert example.reply == "Row one is wet and forgotten."
    assert "pages without text (1)" in told[0]
    (tmp_path / "a.pdf").write_bytes(a_pdf(*pages))
    assert "\n".join(replies(tmp_path)).split() == " ".join(bodies).split(), "heads and feet are no text"


def test_what_has_no_text_is_said(tmp_path: Path) -> None:
    writer = pypdf.PdfWriter(io.BytesIO(a_pdf(["Row one is wet."])))
    writer.encrypt("gate", algorithm="RC4-128")
    locked = io.BytesIO()
    writer.write(locked)
    cases = {
        "scan.pdf": (a_pdf([], []), "has no text: its pages are pictures; recognise their text first"),
        "locked.pdf": (locked.getvalue(), "is locked with a password"),
        "broken.pdf": (a_pdf(["Row one."])[:200], "is no PDF file, or is damaged"),
        "broken.docx": (b"PK\x03\x04" + b"x" * 100, "is no .docx file, or is damaged or locked with a password"),
    }
    for name, (data, says) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{name} {says}"):
            read(tmp_path / name)
    (tmp_path / "note.md").write_text("Row two is dry.")
    with pytest.raises(DataError, match="4 of 5 rows can't be learnt"):
        read(tmp_path)
    assert [each.reply for each in read(tmp_path, skip_bad=True)] == ["Row two is dry."]


def test_what_is_too_large_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b" " * (documents.MOST_BYTES + 1))
    (tmp_path / "bomb.docx").write_bytes(bomb.getvalue())
    with pytest.raises(DataError, match=r"bomb.docx must unpack to at most 64 MB"):
        read(tmp_path / "bomb.docx")
    monkeypatch.setattr(documents, "MOST_BYTES", 100)
    (tmp_path / "a.pdf").write_bytes(a_pdf(["Row one."]))
    with pytest.raises(DataError, match=r"a.pdf must have at most 0 MB, got 0"):
        read(tmp_path / "a.pdf")


def test_a_parser_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is: a parser may loop, or die, whatever it is given."""
    monkeypatch.setattr(documents.subprocess, "run", lambda *a, **k: type("D", (), {"stdout": b""})())
    (tmp_path / "a.pdf").write_bytes(a_pdf(["Row one."]))
    with pytest.raises(DataError, match="takes more memory or time than a document may"):
        read(tmp_path / "a.pdf")


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "a.pdf").write_bytes(a_pdf(["Row one."]))
    with pytest.raises(DataError, match=r"pip install 'sideplug\[files\]'"):
        read(tmp_path / "a.pdf")
