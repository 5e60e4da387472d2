"""Files and processes are read and written as UTF-8, whatever the locale: every call of the package says so."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "sideplug"


def unsaid(source: str) -> list[int]:
    """The lines of calls that would read or write text in the locale's encoding."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        said = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in said or None in said:
            continue
        place = 0 if isinstance(node.func, ast.Attribute) and name == "open" else 1
        mode = node.args[place] if name in ("open", "fdopen") and len(node.args) > place else None
        if (
            (name == "read_text" and not node.args)
            or (name == "write_text" and len(node.args) < 2)
            or (isinstance(node.func, ast.Name) and name == "open" and len(node.args) < 2)
            or (isinstance(mode, ast.Constant) and set(str(mode.value)) <= set("rwa+xt"))
            or (name in ("run", "Popen", "check_output") and ("text" in said or "universal_newlines" in said))
        ):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("p.read_text()\np.read_text('utf-8')\np.write_text('x')\np.write_text('x', 'utf-8')", [1, 3]),
        ("open(p)\nopen(p, 'rb')\nopen(p, 'w')\nopen(p, 'w', encoding='utf-8')\np.open('w')\np.open('rb')", [1, 3, 5]),
        ("subprocess.run(c, text=True)\nsubprocess.run(c, text=True, encoding='utf-8')", [1]),
    ],
)
def test_what_it_finds(source: str, lines: list[int]) -> None:
    assert unsaid(source) == lines


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_the_package_says_its_encodings(file: Path) -> None:
    assert unsaid(file.read_text("utf-8")) == []


def test_code_of_a_model_is_never_run() -> None:
    """trust_remote_code=False at every call of transformers that could."""
    for file in ROOT.rglob("*.py"):
        source = file.read_text("utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and node.attr in ("from_pretrained", "from_config"):
                owner = ast.unparse(node.value)
                assert not owner.split(".")[-1].startswith("Auto") or "trust_remote_code" in source, file
