"""What the newer APIs share: their requests name many things that no base has, so what is not known is passed over.

It is told in the reply's `usage.sideplug.passed_over`. Test: pytest tests/device/test_newer_apis.py
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

from sideplug.contract.capabilities import Grammar
from sideplug.device.gateway import tools
from sideplug.device.gateway.json_fields import Fields, JsonObject, typed, whole
from sideplug.device.gateway.openai_api import (
    MAX_TOKENS,
    NO_TOOLS,
    CompletionRequest,
    Defaults,
    chat_prompt,
    extensions_of,
    sampling_of,
    stops_of,
)

READ = ("model", "stream", "temperature", "top_p", "top_k", "seed", "sideplug", "tools", "tool_choice")  # by all
PASSED_OVER = 20  # names that are told


def request_of(
    fields: Fields,
    messages: Sequence[object],
    honoured: Collection[str],
    most: str,
    stop: str,
    defaults: Defaults,
    unread: Sequence[str] = (),
    grammar: Grammar | None = None,
) -> CompletionRequest:
    """A chat with these messages, calls and results among them as chat completions write them.

    most, stop: the names of the fields for the most tokens and the stop texts.

    honoured: fields that are read; others are passed over, as is what of the messages stands in `unread`. grammar: the
    form that the reply must have. Raises InputError.
    """
    plain, of_tools = chat_prompt(messages)
    asked = tools.asked_of(fields)
    prompt = tools.prompt_with(messages, asked.functions, asked.choice) if asked.functions else plain
    unread = [*unread, *asked.passed_over, *(() if asked.functions else of_tools)]
    gate_rate, detail = extensions_of(fields)
    known = {
        *honoured,
        most,
        stop,
        "model",
        "stream",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "sideplug",
        "tools",
        "tool_choice",
    }
    unknown = sorted(name[:80] for name, value in fields.items() if name not in known and value not in (None, [], {}))
    limit = whole(fields, most, defaults.max_tokens)
    return CompletionRequest(
        model=typed(fields, "model", str, ""),
        prompt=prompt,
        chat=True,
        max_tokens=max(1, min(limit, MAX_TOKENS)),
        sampling=sampling_of(fields, defaults),
        stops=stops_of(fields.get(stop)),
        stream=typed(fields, "stream", bool, False),
        gate_rate=gate_rate,
        detail=detail,
        grammar=grammar,
        plain=(plain, (NO_TOOLS, *of_tools)) if asked.functions and asked.choice == tools.AUTO else None,
        passed_over=tuple([*unknown, *unread][:PASSED_OVER]),
    )


def event(kind: str, data: Mapping[str, object]) -> bytes:
    """A server-sent event of this kind, whose data says its kind too."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data}, ensure_ascii=False)}\n\n".encode()


def named(kind: str, **data: object) -> JsonObject:
    """A chunk of a stream: an event's kind and data."""
    return {"kind": kind, "data": data}
