"""Every sentence that a person may read, found in the sources: it has no words of the wire and none of Python.

A sentence is a text that an error of ours is made with, or that a command prints. What comes from another library goes
through `reason`, which says it in words.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from sideplug.contract import errors
from sideplug.contract.errors import SideplugError

SOURCES = Path(errors.__file__).parents[1]
PRINTS = {"say", "echo", "tell", "print", "not_written"}
FORBIDDEN = re.compile(
    r"\b(?:frames?|codecs?|NoneType|reshape|traceback|dtypes?|ndarray|msgpack|json\.\w+|0x[0-9a-f]+|"
    r"(?:Key|Type|Value|Attribute|Index|Runtime)Error|(?:Dict|dict|tuple|None)|stdin|stdout|stderr|argv)\b"
)
NOT_FOR_PEOPLE = ("bench",)  # whose messages go to whoever measures


def names_of(cls: type) -> set[str]:
    return {cls.__name__}.union(*(names_of(sub) for sub in cls.__subclasses__()))


def sentences() -> Iterator[tuple[str, ast.expr]]:
    """(where, the text) of each sentence in the sources."""
    makes = names_of(SideplugError) | {"Unfit"} | PRINTS
    for path in sorted(SOURCES.rglob("*.py")):
        if path.relative_to(SOURCES).parts[0] in NOT_FOR_PEOPLE:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and _name(node.func) in makes:
                for text in node.args:
                    yield f"{path.relative_to(SOURCES.parent)}:{text.lineno}", text


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def words(text: ast.expr) -> str:
    """What is written in it."""
    keys = {id(part.slice) for part in ast.walk(text) if isinstance(part, ast.Subscript)}
    parts = (part.value for part in ast.walk(text) if isinstance(part, ast.Constant) and id(part) not in keys)
    return " ".join(part for part in parts if isinstance(part, str))


def of_python(text: ast.expr) -> bool:
    """Whether it names a value's class."""
    return any(
        isinstance(part, ast.Attribute) and part.attr in ("__name__", "__qualname__", "__class__")
        for part in ast.walk(text)
    )


SENTENCES = list(sentences())


def test_there_are_sentences() -> None:
    assert len(SENTENCES) > 200


def test_no_sentence_has_words_of_the_wire_or_of_python() -> None:
    wrong = [f"{where}: {found[0]}" for where, text in SENTENCES if (found := FORBIDDEN.search(words(text)))]
    assert wrong == []


def test_no_sentence_names_a_class() -> None:
    wrong = [where for where, text in SENTENCES if of_python(text)]
    assert wrong == []
