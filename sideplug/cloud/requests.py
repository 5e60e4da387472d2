"""What a device's frames ask for, checked: a frame in, a piece of work out.

Nothing here waits, sends, or knows the event loop: `session` calls these functions and hands their results to the
engine. InputError (and TooLong, WrongBase) is the user's mistake; ProtocolError is a device that does not keep to
docs/WIRE.md. Test: pytest tests/cloud/test_requests.py
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from sideplug.cloud.reading import TOP, ExampleWork
from sideplug.cloud.reply import Reply, Send, SessionSpec
from sideplug.cloud.speculation import AcceptanceStats
from sideplug.cloud.store import Base
from sideplug.cloud.tokenizer import TextStream, Tokenizer
from sideplug.contract.errors import InputError, ProtocolError, TooLong, WrongBase
from sideplug.contract.gate import Gate
from sideplug.contract.progress import running_hash
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.contract.wire import (
    HEADS,
    MAX_AHEAD,
    MAX_PAYLOAD_BYTES,
    MAX_TOP,
    MAX_WRITTEN,
    ROWS_PER_FRAME,
    Frame,
    Kind,
)

CHARACTERS_PER_TOKEN = 100  # no tokenizer has longer tokens on average, so a text with more characters cannot fit


class Shape(Protocol):
    """What a request is checked against: the sizes of the served model."""

    blocks: int
    width: int
    vocab: int
    context: int


@dataclass(frozen=True)
class Opened:
    """What all requests of an opened session have in common.

    user: whom its work belongs to, for fair shares. scope: whose cached texts it may begin with.
    """

    spec: SessionSpec
    shape: Shape
    tokenizer: Tokenizer
    user: str = ""
    scope: str = ""
    stats: AcceptanceStats = field(default_factory=AcceptanceStats)


def read_open(frame: Frame, base: Base, shape: Shape) -> SessionSpec:
    """An OPEN: how the device wants to be asked.

    Raises ProtocolError for another frame, WrongBase for a plugin of another base model, and InputError for a tap,
    gate or merge that does not fit the model.
    """
    if frame.kind is not Kind.OPEN:
        raise ProtocolError(f"a session must begin with OPEN, got {frame.kind.name}")
    if frame["base"] not in ("", base.fingerprint):
        raise WrongBase(
            f"this plugin was made for the base model {frame['base'][:12]}, but the cloud serves "
            f"{base.fingerprint[:12]} ({base.name}): serve that model, or train a plugin for this one"
        )
    tap = Tap.parse(frame["tap"]) if frame["tap"] else Tap.spread(shape.blocks, shape.width)
    tap.check(shape.blocks, shape.width)
    gate = Gate.from_wire(frame["gate"], frame.tensors["gate"])
    gate.check(shape.width)
    return SessionSpec(tap, gate, frame["merge"])


def read_prompt(frame: Frame, opened: Opened, send: Send) -> Reply:
    """A PROMPT: the reply that it asks for; `send` gets the reply's frames. Raises InputError, TooLong."""
    shape, tokenizer = opened.shape, opened.tokenizer
    ids = tokenizer.encode(_short_enough(Prompt.from_wire(frame.control), shape))
    if not ids:
        raise InputError("the prompt is empty: give at least one word")
    if max(ids) >= shape.vocab:
        raise InputError(f"a prompt's ids must be below {shape.vocab}, got {max(ids)}")
    _check_length(len(ids) + 1, "the prompt", shape)
    if frame["max_tokens"] < 1:
        raise InputError(f"max_tokens must be 1 or more, got {frame['max_tokens']}")
    window, deadline_ms = frame.control.get("ahead", 0), frame.control.get("deadline_ms", 0)
    if not 0 <= window <= MAX_AHEAD:
        raise InputError(f"the cloud runs 0 to {MAX_AHEAD} asks ahead, got {window}")
    if not 0 <= deadline_ms <= 1 << 31:
        raise InputError(f"an answer's deadline must be 0 (none) or more milliseconds, got {deadline_ms}")
    head = frame.control.get("head", "cloud")
    if head not in HEADS:
        raise InputError(f"the head must be in the {' or the '.join(HEADS)}, got {head[:40]!r}")
    top = frame.control.get("top", 0)
    if not 0 <= top <= MAX_TOP:
        raise InputError(f"0 to {MAX_TOP} alternatives are told of a token, got {top}")
    sampling = Sampling.from_wire(frame["sampling"])
    done = resumed_ids(frame, ids, shape)
    return Reply(
        ids=ids,
        send=send,
        user=opened.user,
        scope=opened.scope,
        turn=frame["turn"],
        spec=opened.spec,
        text=TextStream(tokenizer),
        sampling=sampling,
        max_tokens=frame["max_tokens"],
        context=shape.context,
        stop_ids=tokenizer.stop_ids,
        window=window,
        deadline_s=deadline_ms / 1000,
        head=head,
        top=top,
        stats=opened.stats,
        done=done,
    )


def resumed_ids(frame: Frame, prompt_ids: list[int], shape: Shape) -> list[int]:
    """The reply's ids that the device has from before its connection broke; [] for a new reply.

    Raises InputError when they cannot be ids of this reply, or when prompt and ids do not have the hash that the device
    gives: then this cloud's tokenizer reads the prompt otherwise than the one that began the reply.
    """
    done = frame.control.get("done", [])
    most = min(frame["max_tokens"], shape.context - len(prompt_ids))
    if len(done) > most or not all(type(token) is int and 0 <= token < shape.vocab for token in done):
        raise InputError(
            f"what is done of a reply must be at most max_tokens ids below {shape.vocab}, and fit the context ({most})"
        )
    if done and frame.control.get("hash") != running_hash(done, running_hash(prompt_ids)):
        raise InputError("this cloud reads the prompt otherwise than the one that began the reply: ask anew")
    return done


def read_example(frame: Frame, opened: Opened, send: Send) -> ExampleWork:
    """A READ: the example that is to be read, or written by the base; `send` gets its frames.

    Raises InputError, and TooLong where it does not fit into the context, or its EXAMPLE not into a frame.
    """
    shape, tap = opened.shape, opened.spec.tap
    prompt = _short_enough(Prompt.from_wire(frame.control), shape, frame["reply"])
    greedy_tokens, reply = frame.control.get("write", 0), list[int]()
    if greedy_tokens:
        if not 0 < greedy_tokens <= MAX_WRITTEN or frame["reply"] or frame["score"]:
            raise InputError(f"the base writes 1 to {MAX_WRITTEN} tokens, and no reply is given then")
        start = opened.tokenizer.encode(prompt)
    else:
        start, reply = opened.tokenizer.encode_example(prompt, frame["reply"])
    size = len(reply) or greedy_tokens
    if not start or not size:
        raise InputError("the example has nothing to learn: its reply is empty, or its text one token")
    _check_length(len(start) + size, "the example", shape)
    # Of each token EXAMPLE carries the tap's codes, z in float16, the best ids, its id and the log-sum-exp.
    most = MAX_PAYLOAD_BYTES // (tap.bytes_per_token + 2 * shape.width + 4 * TOP + 8)
    if size > most:
        raise TooLong(f"the example's reply has {size} tokens, with this tap it may have at most {most}")
    return ExampleWork(
        ids=start + reply,
        send=send,
        user=opened.user,
        scope=opened.scope,
        number=frame["number"],
        spec=opened.spec,
        prompt_tokens=len(start),
        score=frame["score"],
        greedy_tokens=greedy_tokens,
    )


def read_rows(frame: Frame, shape: Shape) -> np.ndarray:
    """A ROWS: the token ids (n,) int32 whose rows of the head it asks for. Raises ProtocolError."""
    ids = frame.tensors["ids"]
    well_formed = ids.dtype == np.int32 and 0 < len(ids) <= ROWS_PER_FRAME
    if not well_formed or ids.min() < 0 or ids.max() >= shape.vocab:
        raise ProtocolError(f"ROWS must ask for 1 to {ROWS_PER_FRAME} ids below {shape.vocab}")
    return ids


def _short_enough(prompt: Prompt, shape: Shape, reply: str = "") -> Prompt:
    """The prompt. Raises TooLong for a text that cannot fit, before the tokenizer spends everybody's time on it."""
    size = prompt.characters + len(reply)
    if size > CHARACTERS_PER_TOKEN * shape.context:
        raise TooLong(f"the text has {size:,} characters, the base model takes at most {shape.context} tokens")
    return prompt


def _check_length(tokens: int, what: str, shape: Shape) -> None:
    if tokens > shape.context:
        raise TooLong(f"{what} has {tokens} tokens with its reply, the base model takes at most {shape.context}")
