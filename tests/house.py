"""The generated parts of docs/ARCHITECTURE.md: the tree of files, and what each room may import."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.test_walls import ANY, MAY_IMPORT, TO_COME

PACKAGE = Path(__file__).parent.parent / "sideplug"


def file_tree() -> str:
    """Every module of the package with the first sentence of its docstring, as a code block."""
    return "\n".join(["```", *_lines(PACKAGE, 0), "```"]) + "\n"


def rooms_table() -> str:
    """What each room may import, besides itself."""
    rows = ["| room | may import |", "|---|---|"]
    for room, allowed in MAY_IMPORT.items():
        others = ", ".join(f"`{name}`" for name in sorted(allowed - {room})) or "nothing of ours"
        rows.append(f"| `{room}`{' (to come)' * (room in TO_COME)} | {others} |")
    rows.append(f"| {', '.join(f'`{name}`' for name in sorted(ANY))} | every room |")
    return "\n".join(rows) + "\n"


def _lines(folder: Path, depth: int) -> list[str]:
    """A folder's line, then its modules, then its folders."""
    lines = [_line(folder.name + "/", folder / "__init__.py", depth)]
    lines += [_line(file.name, file, depth + 1) for file in sorted(folder.glob("*.py")) if file.name != "__init__.py"]
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"):
        if (inner / "__init__.py").is_file():
            lines += _lines(inner, depth + 1)
        elif any(inner.iterdir()):
            names = ", ".join(sorted(path.name for path in inner.iterdir()))
            lines.append(f"{'  ' * (depth + 1)}{inner.name}/".ljust(34) + names)
    return lines


def _line(name: str, file: Path, depth: int) -> str:
    return (("  " * depth + name).ljust(34) + _first_sentence(file)).rstrip()


def _first_sentence(file: Path) -> str:
    """Of the module's docstring, without its full stop."""
    paragraph = " ".join(
        (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split()
    )
    return re.split(r"(?<=[\w)…\]}])[.:] (?=[A-Z`*{])", paragraph)[0].rstrip(".")
