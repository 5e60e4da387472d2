"""Which examples the cloud can't read: asked before the first is recorded, so that one of them does not end a training.

Only the cloud has the tokenizer and the chat template. It is asked about the examples that may be too long, or too
short to hold anything, and about one of each order of roles, which a template may refuse: mostly about none or few.
What it answers is not kept. Test: pytest tests/training/test_preflight.py
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Sequence

from sideplug.contract.errors import Busy, CloudError, DataError, InputError, ProtocolError, TooLong
from sideplug.contract.frames import ModelInfo
from sideplug.contract.tap import ContextSlice, Tap
from sideplug.contract.wire import MAX_PAYLOAD_BYTES
from sideplug.device.client import Client
from sideplug.device.responders import Silent
from sideplug.device.session import Session
from sideplug.readers import Example
from sideplug.readers.report import Tell, first_of, refusal
from sideplug.training.recorder import LONGEST_WAIT_S, Reads

SHORT_BYTES = 64  # a text of so many may be one token, which has nothing to learn
LEAST_TEMPLATE, TEMPLATE_SHARE = 100, 16  # tokens that a chat template may add: so many, or this part of the context
PER_MESSAGE = 8  # tokens that it adds to each message
PER_ROW = 128  # bytes of a token on a tape beside its codes and z
_USUAL = re.compile(r"(ua)*u")  # the user and the assistant by turns


def readable(
    client: Client,
    examples: Sequence[Example],
    tap: Tap,
    context: ContextSlice | None,
    skip_bad: bool = False,
    tell: Tell = lambda line: None,
) -> list[Example]:
    """Return the examples that the cloud can read; the others are refused, or with `skip_bad` left out and told.

    What of the examples no training learns, their days, is told. Raises DataError, CloudError.
    """
    dated = sum(bool(each.date) for each in examples)
    if dated:
        tell(f"not learnt: dates ({dated}), which only a memory keeps: sideplug remember")
    asked = suspects(examples, client.model(), tap, context)
    if not asked:
        return list(examples)
    with client.connect(responder=Silent(tap, context)) as session:
        bad = refused(session, examples, asked, context is not None)
    if bad and not skip_bad:
        raise DataError(refusal(list(bad.values()), len(examples)))
    if bad:
        tell(f"left out: {len(bad)} of {len(examples)} examples: {first_of(list(bad.values()))}")
    if len(bad) == len(examples):
        raise DataError("no example is left that the cloud can read")
    return [example for number, example in enumerate(examples) if number not in bad]


def suspects(
    examples: Sequence[Example], model: ModelInfo, tap: Tap, context: ContextSlice | None
) -> dict[int, list[int]]:
    """Return the numbers of examples to ask about, each with those that are refused too if its roles are.

    No tokenizer makes more tokens of a text than it has bytes.
    """
    rows = MAX_PAYLOAD_BYTES - (context.bytes_per_token * model.context if context else 0)
    most = min(model.context, max(0, rows) // (tap.bytes_per_token + 2 * model.width + PER_ROW))
    most -= max(LEAST_TEMPLATE, model.context // TEMPLATE_SHARE)
    orders: dict[str, list[int]] = {}
    asked = dict[int, list[int]]()
    for number, example in enumerate(examples):
        messages = example.prompt.messages
        size = len(example.reply.encode()) + len((example.prompt.text or "").encode())
        size += sum(len(message["content"].encode()) + PER_MESSAGE for message in messages or ())
        if size > most or (messages is None and size <= SHORT_BYTES):
            asked[number] = []
        orders.setdefault(_order(example), []).append(number)
    if len(orders) > 1:  # of a single order the first example tells
        asked |= {alike[0]: alike for alike in orders.values()}
    return asked


def refused(session: Session, examples: Sequence[Example], asked: dict[int, list[int]], rows: bool) -> dict[int, str]:
    """Return what the cloud says against examples, by their numbers. Raises CloudError."""
    bad = dict[int, str]()
    waiting, under_way = deque(sorted(asked)), set[int]()
    reads = Reads(session, examples, score=False, context=rows)
    while waiting or under_way:
        try:
            while waiting and len(under_way) < session.readings:
                number = waiting.popleft()
                under_way.add(number)
                reads.ask(number)
            frame = session.receive()
            under_way.discard(getattr(frame, "number", -1))
            session.progressed()
        except (InputError, Busy) as error:
            if error.number is None or error.number not in under_way:
                raise
            if isinstance(error, Busy):
                time.sleep(min(error.retry_s or 1.0, LONGEST_WAIT_S))
                reads.ask(error.number)
                continue
            under_way.discard(error.number)
            alike = [] if isinstance(error, TooLong) else asked[error.number]
            bad |= {number: f"{examples[number].where}: {error}" for number in (error.number, *alike)}
        except (CloudError, ProtocolError) as error:
            session.reconnect(error)
            waiting.extendleft(sorted(under_way, reverse=True))
            under_way.clear()
    return dict(sorted(bad.items()))


def _order(example: Example) -> str:
    """Return the roles of an example's messages as letters; one word for each order that most templates take."""
    if example.prompt.messages is None:
        return "text"
    roles = "".join(message["role"][0] for message in example.prompt.messages)
    after = roles.removeprefix("s")
    return roles[: len(roles) - len(after)] + "by turns" if _USUAL.fullmatch(after) else roles
