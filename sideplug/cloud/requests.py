"""What a device's frames ask for, checked: a frame in, a piece of work out.

Nothing here waits, sends, or knows the event loop: `session` calls these functions and hands their results to the
engine. InputError (and TooLong, WrongBase) is the user's mistake; ProtocolError is a device that does not keep to
docs/WIRE.md. Test: pytest tests/cloud/test_requests.py
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sideplug.cloud.context_rows import ContextRows
from sideplug.cloud.grammar import Grammars
from sideplug.cloud.model.base import Sizes
from sideplug.cloud.model.memory import Reservation
from sideplug.cloud.reading import TOP, ExampleWork
from sideplug.cloud.reply import Reply, Send, SessionSpec
from sideplug.cloud.speculation import AcceptanceStats
from sideplug.cloud.store import Base
from sideplug.cloud.tokenizer import TextStream, Tokenizer
from sideplug.cloud.tools import grammar_of
from sideplug.cloud.trunks import Trunks
from sideplug.contract.bias import of_session
from sideplug.contract.capabilities import (
    CONTEXT,
    GRAMMAR,
    QUOTE,
    TOKENS,
    TOOLS,
    TRUNK,
    ContextSettings,
    Grammar,
    Quote,
    extension_of,
    grant,
    settings_of,
)
from sideplug.contract.codec import pack
from sideplug.contract.correction import check_merge
from sideplug.contract.errors import InputError, ProtocolError, TooLong, WrongBase
from sideplug.contract.frames import (
    HEADS,
    MAX_GREEDY_TOKENS,
    MAX_TOP,
    MAX_WINDOW,
    ROWS_PER_FRAME,
    Open,
    PromptFrame,
    Read,
    Rows,
)
from sideplug.contract.frames import Example as ExampleFrame
from sideplug.contract.gate import Gate, unpack_gates
from sideplug.contract.progress import running_hash
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import ContextSlice, Tap
from sideplug.contract.text import Prompt
from sideplug.contract.wire import MAX_PAYLOAD_BYTES

NO_TRUNKS = Trunks()
CHARACTERS_PER_TOKEN = 100  # no tokenizer has longer tokens on average, so a text with more characters cannot fit


@dataclass(frozen=True)
class Terms:
    """What all requests of an opened session have in common.

    user: whom its work belongs to, for fair shares. scope: whose cached texts it may begin with. claim: what holds the
    memory of its tap. grammars: reads those of its replies.
    """

    spec: SessionSpec
    shape: Sizes
    tokenizer: Tokenizer
    user: str = ""
    scope: str = ""
    stats: AcceptanceStats = field(default_factory=AcceptanceStats)
    claim: Reservation | None = None
    grammars: Grammars | None = None


def read_open(
    frame: Open, base: Base, shape: Sizes, trunks: Trunks = NO_TRUNKS, has_tools: bool = False
) -> SessionSpec:
    """An OPEN: how the device wants to be asked. trunks: those that this cloud has. has_tools: its base has them.

    Raises WrongBase for a plugin of another base model, InputError for a tap, gate, merge or capability that this cloud
    does not have or that does not fit the model, ProtocolError for malformed settings of a capability.
    """
    if frame.base not in ("", base.fingerprint):
        raise WrongBase(
            f"this plugin was made for the base model {frame.base[:12]}, but the cloud serves "
            f"{base.fingerprint[:12]} ({base.name}): serve that model, or train a plugin for this one"
        )
    tap = Tap.parse(frame.tap) if frame.tap else Tap.spread(shape.blocks, shape.width)
    tap.check(shape.blocks, shape.width)
    if not frame.gates:
        raise InputError("a session must have at least one gate")
    gates = unpack_gates(frame.gates, frame.gate, shape.width)
    granted = grant(frame.capabilities)
    rows = settings_of(granted, CONTEXT, ContextSettings)
    context = ContextSlice(tap, tuple(rows.layers), rows.rank) if rows else None
    biases = of_session(granted, len(gates), shape.vocab)
    merge = check_merge(frame.merge)
    own = trunks.of_session(granted, tap, len(gates)) if merge == "add" else {}
    if not own:
        granted.pop(TRUNK.name, None)
    if not has_tools:
        granted.pop(TOOLS.name, None)
    return SessionSpec(tap, tuple(gates), merge, context, granted, biases=biases, trunks=own)


def read_prompt(frame: PromptFrame, terms: Terms, send: Send) -> Reply:
    """A PROMPT: the reply that it asks for; `send` gets the reply's frames. Raises InputError, TooLong."""
    shape, tokenizer, spec = terms.shape, terms.tokenizer, terms.spec
    prompt = Prompt.from_wire(frame)
    ids = tokenizer.encode(_short_enough(prompt, shape))
    if not ids:
        raise InputError("the prompt is empty: give at least one word")
    if max(ids) >= shape.vocab:
        raise InputError(f"a prompt's ids must be below {shape.vocab}, got {max(ids)}")
    _check_length(len(ids) + 1, "the prompt", shape)
    if frame.max_tokens < 1:
        raise InputError(f"max_tokens must be 1 or more, got {frame.max_tokens}")
    if not 0 <= frame.window <= MAX_WINDOW:
        raise InputError(f"the speculation window must be 0 to {MAX_WINDOW} asks, got {frame.window}")
    if not 0 <= frame.deadline_ms <= 1 << 31:
        raise InputError(f"an answer's deadline must be 0 (none) or more milliseconds, got {frame.deadline_ms}")
    if frame.head not in HEADS:
        raise InputError(f"the head must be in the {' or the '.join(HEADS)}, got {frame.head!r}")
    if not 0 <= frame.top <= MAX_TOP:
        raise InputError(f"0 to {MAX_TOP} alternatives are told of a token, got {frame.top}")
    if any(token >= shape.vocab for token in frame.draft):
        raise InputError(f"a draft's ids must be below {shape.vocab}, got {max(frame.draft)}")
    if frame.context is not None and spec.context is None:
        raise InputError("a prompt must not ask for context rows: the session did not ask for that capability")
    quote = extension_of(frame, QUOTE, Quote)
    if quote and max(quote.ids) >= shape.vocab:
        raise InputError(f"a quote's ids must be below {shape.vocab}, got {max(quote.ids)}")
    done = resumed_ids(frame, ids, shape)
    grammar = extension_of(frame, GRAMMAR, Grammar)
    calls = tokenizer.call_form if prompt.tools else None
    if prompt.tools and calls:
        must_call = grammar_of(prompt.tools, calls)
        if grammar:
            raise InputError("a reply must not have tools and another form: leave one of them out")
        grammar = must_call
    if grammar and quote:
        raise InputError("a reply must not have a quote and a grammar: a quote is said whatever its form")
    if frame.context is not None and frame.context > len(ids) + len(done):
        raise InputError(f"a device can have at most {len(ids) + len(done)} rows of this text, got {frame.context}")
    return Reply(
        ids=ids,
        send=send,
        user=terms.user,
        scope=terms.scope,
        turn=frame.turn,
        spec=spec,
        text=TextStream(tokenizer),
        sampling=Sampling.from_wire(frame.sampling),
        max_tokens=frame.max_tokens,
        context=shape.context,
        stop_ids=tokenizer.stop_ids,
        window=frame.window,
        deadline_s=frame.deadline_ms / 1000,
        head=frame.head,
        top=frame.top,
        stats=terms.stats,
        done=done,
        gates=_gates(frame, spec),
        rows=ContextRows(spec.context, frame.context, spec.encoder)
        if spec.context and frame.context is not None
        else None,
        first_draft=frame.draft,
        quote=quote.ids if quote else [],
        guide=(terms.grammars or Grammars(tokenizer, shape.vocab)).guide(grammar) if grammar else None,
        calls=calls,
    )


def _gates(frame: PromptFrame, spec: SessionSpec) -> tuple[Gate, ...]:
    """The gates of one reply: those of OPEN, but for the parts that the PROMPT opens or shuts. Raises InputError."""
    if not frame.gates:
        return spec.gates
    if len(frame.gates) != len(spec.gates) or not set(frame.gates) <= {"", "open", "shut"}:
        raise InputError(f'gates must be "open", "shut" or "" for each of {len(spec.gates)} parts')
    return tuple(Gate(kind) if kind else gate for kind, gate in zip(frame.gates, spec.gates, strict=True))


def resumed_ids(frame: PromptFrame, prompt_ids: list[int], shape: Sizes) -> list[int]:
    """The reply's ids that the device has from before its connection broke; [] for a new reply.

    Raises InputError when they cannot be ids of this reply, or when prompt and ids do not have the hash that the device
    gives: then this cloud's tokenizer reads the prompt otherwise than the one that began the reply.
    """
    done = frame.done
    most = min(frame.max_tokens, shape.context - len(prompt_ids))
    if len(done) > most or not all(token < shape.vocab for token in done):
        raise InputError(
            f"what is done of a reply must be at most max_tokens ids below {shape.vocab}, and fit the context ({most})"
        )
    if done and frame.hash != running_hash(done, running_hash(prompt_ids)):
        raise InputError("this cloud reads the prompt otherwise than the one that began the reply: ask anew")
    return list(done)


def read_example(frame: Read, terms: Terms, send: Send) -> ExampleWork:
    """A READ: the example that is to be read, or written by the base; `send` gets its frames.

    Raises InputError, and TooLong where it does not fit into the context, or its EXAMPLE not into a frame.
    """
    shape, spec = terms.shape, terms.spec
    prompt = _short_enough(Prompt.from_wire(frame), shape, frame.reply)
    if frame.context and spec.context is None:
        raise InputError("an example must not ask for context rows: the session did not ask for that capability")
    reply = list[int]()
    if frame.greedy_tokens:
        if not 0 < frame.greedy_tokens <= MAX_GREEDY_TOKENS or frame.reply or frame.score:
            raise InputError(f"the base writes 1 to {MAX_GREEDY_TOKENS} tokens, and no reply is given then")
        start = terms.tokenizer.encode(prompt)
    else:
        start, reply = terms.tokenizer.encode_example(prompt, frame.reply)
    size = len(reply) or frame.greedy_tokens
    if not start or not size:
        raise InputError("the example has nothing to learn: its reply is empty, or its text one token")
    _check_length(len(start) + size, "the example", shape)
    # Of each token EXAMPLE carries the tap's codes, z in float16, the best ids, its id and the log-sum-exp.
    rows = spec.context.bytes_per_token * len(start) if spec.context and frame.context else 0
    most = max(0, MAX_PAYLOAD_BYTES - rows) // (spec.tap.bytes_per_token + 2 * shape.width + 4 * TOP + 8)
    if size > most:
        raise TooLong(f"the example's reply has {size} tokens, with this tap it may have at most {most}")
    return ExampleWork(
        ids=start + reply,
        send=send,
        user=terms.user,
        scope=terms.scope,
        number=frame.number,
        spec=spec,
        width=shape.width,
        prompt_tokens=len(start),
        score=frame.score,
        greedy_tokens=frame.greedy_tokens,
        wants_context=frame.context,
    )


def read_tokens(frame: Read, terms: Terms) -> ExampleFrame:
    """A READ that wants tokens alone: its EXAMPLE, for which no model runs. Raises as read_example does.

    Raises InputError too where a score, context rows or the base's own reply is wanted with them.
    """
    if TOKENS.name not in terms.spec.granted:
        raise InputError("an example must not ask for tokens alone: the session did not ask for that capability")
    if frame.score or frame.context or frame.greedy_tokens:
        raise InputError("an example's tokens alone come without a score, context rows or a reply of the base's")
    example, tap = read_example(frame, terms, lambda frame: None), terms.spec.tap
    codes, scales = pack(np.zeros((0, len(tap.layers), tap.rank), np.float32), int8=tap.codec == "int8")
    z, z_scales = pack(np.zeros((0, terms.shape.width), np.float32), int8=False)
    top, lse = np.zeros((0, TOP), np.int32), np.zeros(0, np.float32)
    return ExampleFrame(frame.number, example.targets, codes, scales, z, z_scales, top, lse)


def read_rows(frame: Rows, shape: Sizes) -> np.ndarray:
    """A ROWS: the token ids (n,) int32 whose rows of the head it asks for. Raises ProtocolError."""
    ids = frame.ids
    well_formed = ids.dtype == np.int32 and 0 < len(ids) <= ROWS_PER_FRAME
    if not well_formed or ids.min() < 0 or ids.max() >= shape.vocab:
        raise ProtocolError(f"ROWS must ask for 1 to {ROWS_PER_FRAME} ids below {shape.vocab}")
    return ids


def _short_enough(prompt: Prompt, shape: Sizes, reply: str = "") -> Prompt:
    """The prompt. Raises TooLong for a text that cannot fit, before the tokenizer spends everybody's time on it."""
    size = prompt.characters + len(reply)
    if size > CHARACTERS_PER_TOKEN * shape.context:
        raise TooLong(f"the text is too long: {size:,} characters, and {_most(shape)}")
    return prompt


def _check_length(tokens: int, what: str, shape: Sizes) -> None:
    if tokens > shape.context:
        # In the words by which agents know that they must shorten a conversation.
        raise TooLong(f"{what} is too long: {tokens} tokens > {shape.context} maximum with its reply; {_most(shape)}")


def _most(shape: Sizes) -> str:
    return f"the base model's maximum context length is {shape.context} tokens"
