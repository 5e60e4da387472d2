"""OpenAI's requests, without a socket: a body → CompletionRequest.

Every field of a body is honoured, refused in one sentence, or passed over because no text depends on it, and then named
in the reply's `usage.sideplug.passed_over`. Our extensions stand under the key `sideplug`: {"gate_rate", "detail"}.
This module does not know plugins, HTTP or the cloud; what comes of a request is in openai_reply.
Test: pytest tests/device/test_openai_api.py
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sideplug.contract.capabilities import Grammar
from sideplug.contract.errors import InputError
from sideplug.contract.frames import MAX_TOP
from sideplug.contract.message import FIELDS as MESSAGE_FIELDS
from sideplug.contract.message import read_message
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt, check_messages
from sideplug.device.gateway import structured, tools
from sideplug.device.gateway.json_fields import Fields, is_same, json_object, number, shown, typed, whole

MAX_STOPS = 32
MAX_TOKENS = 1 << 31  # more than any context: as many as fit
UNLIMITED = (-1, None)  # as clients say "no limit"
DETAIL_ALTERNATIVES = 5  # that "detail" tells of each token
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
HONOURED = ("model", "max_tokens", "max_completion_tokens", *SAMPLING, "stop", "stream", "stream_options", "logprobs")
FORMS = ("response_format", "structured_outputs")
OF_CHAT = ("messages", *HONOURED, *FORMS, "tools", "tool_choice", "top_logprobs", "sideplug")
OF_TEXT = ("prompt", *HONOURED, *FORMS, "sideplug")
# Fields that are not supported, each with the values that ask for nothing. Any other value is refused, not passed over.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repeat_penalty": (1,),
    "typical_p": (1,),
    "tfs_z": (1,),
    "mirostat": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "chat_template_kwargs": ({},),
    "store": (False,),
}
# Fields on which no text depends: who asks, for whose books, and how fast.
PASSED_OVER = (
    "user",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
) + ("parallel_tool_calls", "prediction", "cache_prompt", "keep_alive", "ttl")


NO_TOOLS = "tools: the base's chat template has no place for them"
Plain = tuple[Prompt, tuple[str, ...]]


@dataclass(frozen=True)
class CompletionRequest:
    """One request of either endpoint: which model, what it continues, and how.

    chat: it came to /v1/chat/completions. stops: texts that end the reply. alternatives: how many alternatives of each
    token the cloud is asked for; `shown_alternatives` of them stand beside the token's log-probability. gate_rate: the
    share of tokens that the plugin is asked about; None: as the plugin's gate was trained. detail: tell who chose each
    token. passed_over: fields of the request on which no text depends. grammar: the form that the reply must have.
    plain: the prompt without tools, and what is passed over then, where a base that has no tools is to reply all the
    same.
    """

    model: str
    prompt: Prompt
    chat: bool
    max_tokens: int
    sampling: Sampling
    stops: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False
    alternatives: int = 0
    shown_alternatives: int = 0
    gate_rate: float | None = None
    detail: bool = False
    passed_over: tuple[str, ...] = ()
    grammar: Grammar | None = None
    plain: Plain | None = None

    @property
    def functions(self) -> list[str]:
        """The names of the tools that the reply may call."""
        tools = json.loads(self.prompt.tools.tools) if self.prompt.tools else []
        return [tool["function"]["name"] for tool in tools]


@dataclass(frozen=True)
class Defaults:
    """The values of a request that does not give them. temperature 0 is greedy, which suits small models best."""

    max_tokens: int = 512
    temperature: float = 0.0


def parse(body: bytes, chat: bool, defaults: Defaults = Defaults()) -> CompletionRequest:
    """Return the request that a body holds.

    Raises InputError, in one sentence, for a body that is no request or asks for something unsupported.
    """
    fields = json_object(body)
    names = _check_names(fields, OF_CHAT if chat else OF_TEXT)
    prompt, of_tools, plain = _chat_prompt(fields) if chat else (_text_prompt(fields), [], None)
    passed_over = tuple(dict.fromkeys((*names, *of_tools, *_unread_of_messages(fields))))
    gate_rate, detail = extensions_of(fields)
    logprobs, shown_alternatives = _logprobs(fields, chat)
    return CompletionRequest(
        model=typed(fields, "model", str, ""),
        prompt=prompt,
        chat=chat,
        max_tokens=_max_tokens(fields, defaults.max_tokens),
        sampling=sampling_of(fields, defaults),
        stops=stops_of(fields.get("stop")),
        stream=typed(fields, "stream", bool, False),
        include_usage=_includes_usage(fields),
        logprobs=logprobs,
        alternatives=max(shown_alternatives, DETAIL_ALTERNATIVES if detail else 1 if logprobs else 0),
        shown_alternatives=shown_alternatives,
        gate_rate=gate_rate,
        detail=detail,
        passed_over=passed_over,
        grammar=structured.of_chat(fields),
        plain=plain,
    )


def sampling_of(fields: Fields, defaults: Defaults) -> Sampling:
    """How tokens are chosen. Raises InputError."""
    temperature = number(fields, "temperature", defaults.temperature)
    # A caller who gives no seed wants a different text each time.
    seed = whole(fields, "seed", secrets.randbits(62) if temperature else 0)
    top_k, top_p = whole(fields, "top_k", 0), number(fields, "top_p", 1.0)
    return Sampling(
        temperature,
        0 if top_k == -1 else top_k,  # some clients send -1 for "all"
        top_p or 1e-9,  # some clients send 0 for "the most likely one"
        number(fields, "repetition_penalty", 1.0),
        seed & ((1 << 63) - 1),
        number(fields, "min_p", 0.0),
    )


def _check_names(fields: Fields, honoured: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the fields that are passed over. Raises InputError for one that can't be honoured."""
    given = {name: value for name, value in fields.items() if value is not None}
    # Who forbids the use of tools asks for nothing that is not so anyway.
    idle = {"tools": given.get("tool_choice") == "none", "functions": given.get("function_call") == "none"}
    passed_over = []
    for name, value in given.items():
        if name in PASSED_OVER or (idle.get(name) and value):
            passed_over.append(name)
        elif name in UNSUPPORTED and name not in honoured:
            if not any(is_same(value, nothing) for nothing in UNSUPPORTED[name]):
                instead = f"leave it out, or give {json.dumps(UNSUPPORTED[name][0])}"
                raise InputError(f"{name} is not supported: {instead} (of sampling there are {', '.join(SAMPLING)})")
        elif name not in honoured:
            raise InputError(f"{name[:80]} is not known here: leave it out (there are {', '.join(honoured)})")
    return tuple(sorted(passed_over))


def _unread_of_messages(fields: Fields) -> tuple[str, ...]:
    """What messages and their parts carry beside their words, by name."""
    listed = fields.get("messages")
    messages = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    contents = [message["content"] for message in messages if isinstance(message.get("content"), list)]
    parts = [part for content in contents for part in content if isinstance(part, dict)]
    unread = {f"messages.{name}" for message in messages for name in message if name not in MESSAGE_FIELDS}
    unread |= {f"messages.content.{name}" for part in parts for name in part if name not in ("type", "text", "refusal")}
    return tuple(name[:80] for name in sorted(unread))[:20]


def _max_tokens(fields: Fields, default: int) -> int:
    """The most tokens of the reply. Raises InputError."""
    names = [name for name in ("max_completion_tokens", "max_tokens") if name in fields]
    name = next((name for name in names if fields[name] is not None), "max_tokens")
    if names and fields.get(name) in UNLIMITED:
        return MAX_TOKENS
    most = whole(fields, name, default)
    if most < 1:
        raise InputError(f"{name} must be 1 or more, or -1 for as many as fit, got {most}")
    return min(most, MAX_TOKENS)


def extensions_of(fields: Fields) -> tuple[float | None, bool]:
    """(gate_rate, detail) of the object `sideplug`."""
    options: Fields = typed(fields, "sideplug", dict, {})
    unknown = sorted(set(options) - {"gate_rate", "detail"})
    if unknown:
        raise InputError(f"sideplug must have gate_rate and detail only, got {', '.join(unknown)[:80]}")
    rate = options.get("gate_rate")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1):
        raise InputError(f"sideplug.gate_rate must be 0 to 1, got {shown(rate)}")
    return None if rate is None else float(rate), typed(options, "detail", bool, False)


def _includes_usage(fields: Fields) -> bool:
    options: Fields = typed(fields, "stream_options", dict, {})
    unknown = sorted(set(options) - {"include_usage", "include_obfuscation"})
    if unknown:
        raise InputError(f"stream_options must have include_usage only, got {', '.join(unknown)[:80]}")
    return typed(options, "include_usage", bool, False)


def _logprobs(fields: Fields, chat: bool) -> tuple[bool, int]:
    """(whether log-probabilities are asked for, alternatives): chat has a switch and a count, completions a count."""
    if chat:
        name = "top_logprobs"
        is_on, count = typed(fields, "logprobs", bool, False), whole(fields, name, 0)
    else:
        name = "logprobs"
        is_on = fields.get(name) is not None and fields[name] is not False
        count = whole(fields, name, 0) if is_on else 0
    if not 0 <= count <= MAX_TOP:
        raise InputError(f"{name} must be 0 to {MAX_TOP}, got {count}")
    return is_on, count if is_on else 0


def _chat_prompt(fields: Fields) -> tuple[Prompt, list[str], Plain | None]:
    """(the prompt of a chat, what of tools is passed over, the prompt for a base without tools). Raises InputError."""
    listed = fields.get("messages")
    if not isinstance(listed, list):
        raise InputError("messages must be a list of {role, content}")
    asked = tools.asked_of(fields)
    prompt, passed_over = chat_prompt(listed)
    if not asked.functions:
        return prompt, [*passed_over, *asked.passed_over], None
    plain = (prompt, (NO_TOOLS, *passed_over)) if asked.choice == tools.AUTO else None
    return tools.prompt_with(listed, asked.functions, asked.choice), asked.passed_over, plain


def chat_prompt(listed: Sequence[object]) -> tuple[Prompt, tuple[str, ...]]:
    """(the prompt of these messages, what of tools is passed over). Raises InputError."""
    read = [read_message(each, f"message {number}") for number, each in enumerate(listed, 1)]
    messages = [{"role": message.role, "content": message.content} for message in read if message.content is not None]
    passed_over = {f"messages: {what}" for message in read for what in message.passed_over}
    return Prompt(messages=tuple(check_messages(messages))), tuple(sorted(passed_over))


def _text_prompt(fields: Fields) -> Prompt:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and type(prompt[0]) is not int:
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt and all(type(i) is int and 0 <= i < 1 << 31 for i in prompt):
        return Prompt(ids=tuple(prompt))
    if not isinstance(prompt, str) or not prompt:
        raise InputError("prompt must be one text (or one list of token ids)")
    return Prompt(text=prompt)


def stops_of(stop: object) -> tuple[str, ...]:
    """The texts that end a reply; an empty one ends nothing."""
    stops = stop if isinstance(stop, list) else [] if stop is None else [stop]
    texts = tuple(text for text in stops if isinstance(text, str))
    if len(texts) < len(stops) or len(stops) > MAX_STOPS:
        raise InputError(f"stop must be a text, or a list of at most {MAX_STOPS} texts, got {shown(stop)}")
    return tuple(text for text in texts if text)
