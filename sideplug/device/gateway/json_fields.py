"""The fields of a JSON object that somebody sent, read by type: each refusal is one sentence that names the field.

A field that is null counts as one that is not there. This module does not know OpenAI's API.
Test: pytest tests/device/test_openai_api.py
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from sideplug.contract.errors import InputError

JsonObject = dict[str, Any]  # shapes differ by endpoint, and clients check them in tests
Fields = Mapping[str, object]  # an object's fields before they are checked
T = TypeVar("T")

SHOWN = 60  # characters of a wrong value that a sentence repeats
FILES = "files must be a list of {name, text}, or {name, data} with data in base64"
KINDS: dict[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def json_object(body: bytes) -> JsonObject:
    """Return the JSON object that a body holds. Raises InputError for another body, or text that is not UTF-8."""
    try:
        value = json.loads(body)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError("the body must be text: it has half of a character (a lone \\ud800 to \\udfff)") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"the body must be JSON: {error.msg[:1].lower()}{error.msg[1:]} at {where}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the body must be JSON: byte {error.start} is not UTF-8 text") from error
    except RecursionError as error:
        raise InputError("the body must be JSON: it is nested too deep") from error
    except ValueError as error:
        raise InputError("the body must be JSON: it has a number of too many digits") from error
    if not isinstance(value, dict):
        raise InputError(f"the body must be a JSON object, got {shown(value)}")
    return value


def object_with(body: bytes, *names: str) -> JsonObject:
    """Return the JSON object in a body, which must have these fields. Raises InputError."""
    fields = json_object(body)
    if any(name not in fields for name in names):
        raise InputError(f"the body must be an object with {' and '.join(names)}")
    return fields


def named_files(files: object) -> list[tuple[str, bytes]]:
    """Return (name, bytes) of each file that the page sent, as text or as data in base64. Raises InputError."""
    if not isinstance(files, list):
        raise InputError(FILES)
    return [_named_file(file) for file in files]


def _named_file(file: object) -> tuple[str, bytes]:
    given = {} if not isinstance(file, dict) else {key: file[key] for key in ("name", "text", "data") if key in file}
    name, content = given.pop("name", None), list(given.items())
    if not isinstance(name, str) or len(content) != 1 or not isinstance(content[0][1], str):
        raise InputError(FILES)
    ((how, text),) = content
    if how == "text":
        return name, text.encode()
    try:
        return name, base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InputError(f"the data of {shown(name)} must be base64") from error


def shown(value: object) -> str:
    """Return a value as JSON has it, cut to what a sentence can hold."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def typed(fields: Fields, name: str, kind: type[T], default: T) -> T:
    """Return the field of this name, which must be of this type; true is no number. Raises InputError."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{name} must be {KINDS[kind]}, got {shown(value)}")
    return value


def whole(fields: Fields, name: str, default: int) -> int:
    """Return a whole number; 4.0 is one. Raises InputError."""
    value = fields.get(name)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return typed(fields, name, int, default)


def number(fields: Fields, name: str, default: float) -> float:
    """Return a number. Raises InputError."""
    value = fields.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf  # beyond all floats: it is refused like other numbers that are too large
    return typed(fields, name, float, default)


def is_same(value: object, other: object) -> bool:
    """Return whether two JSON values are the same; 1.0 is 1, and true is not."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
