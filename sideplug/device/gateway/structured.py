"""The form that a reply must have, as each API asks for it: a request's fields → a Grammar.

    chat completions   response_format, or structured_outputs {json | regex | choice | grammar} as vLLM has it
    Responses          text.format
    Messages           output_config.format

Test: pytest tests/device/test_forms.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sideplug.contract.capabilities import Grammar
from sideplug.contract.errors import InputError
from sideplug.contract.grammar import checked, json_grammar
from sideplug.device.gateway.json_fields import Fields, shown, typed

KINDS = ("text", "json_object", "json_schema")
CHOICES = {"json": (dict, bool, str), "regex": (str,), "choice": (list,), "grammar": (str,)}


def of_chat(fields: Fields) -> Grammar | None:
    """Of a chat completion, or a completion. Raises InputError."""
    of_format = of_response_format(fields.get("response_format"), "response_format")
    of_outputs = _of_outputs(typed(fields, "structured_outputs", dict, {}))
    if of_format and of_outputs:
        raise InputError("response_format and structured_outputs can't be given together: each says what the form is")
    return of_format or of_outputs


def of_response_format(form: object, name: str) -> Grammar | None:
    """Of {"type": "json_schema", "json_schema": {"schema"}} or, as newer APIs have it, {"type", "schema"}."""
    if form is None:
        return None
    if not isinstance(form, Mapping) or form.get("type") not in KINDS:
        raise InputError(f"{name} must have a type of {', '.join(KINDS)}, got {shown(form)}")
    if form["type"] == "text":
        return None
    if form["type"] == "json_object":
        return json_grammar({"type": "object"})
    about = form.get("json_schema", form)
    if not isinstance(about, Mapping) or "schema" not in about:
        raise InputError(f"{name} must have a schema where its type is json_schema")
    return json_grammar(about["schema"])


def _of_outputs(given: Mapping[str, object]) -> Grammar | None:
    asked = {name: value for name, value in given.items() if value is not None}
    if not asked:
        return None
    name, value = next(iter(asked.items()))
    if len(asked) > 1 or name not in CHOICES:
        raise InputError(f"structured_outputs must have one of {', '.join(CHOICES)}, got {', '.join(asked)[:80]}")
    if not isinstance(value, CHOICES[name]):
        raise InputError(f"structured_outputs.{name} must be {_wanted(name)}, got {shown(value)}")
    if name == "json":
        return checked(Grammar("json", value)) if isinstance(value, str) else json_grammar(value)
    if isinstance(value, list):
        if not value or not all(isinstance(each, str) and each for each in value):
            raise InputError("structured_outputs.choice must be a list of texts")
        return checked(Grammar("regex", "|".join(re.escape(each) for each in value)))
    return checked(Grammar("regex" if name == "regex" else "lark", str(value)))


def _wanted(name: str) -> str:
    return {"json": "a schema", "choice": "a list of texts"}.get(name, "a text")
