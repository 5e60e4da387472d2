"""The frames that a reply sends, made from its state: BEGUN, ASK, TOKENS, DONE.

Only this module turns a reply into frames; what they mean stands in docs/WIRE.md. Making one may change what the reply
counts as sent. It does not know models or sockets. K tapped layers, R code width.
Test: pytest tests/cloud/test_engine.py
"""

from __future__ import annotations

import numpy as np

from sideplug.cloud.reply import Ask, Part, Reply
from sideplug.contract import frames, grammar
from sideplug.contract.capabilities import GRAMMAR, MAX_MASKS, TOOLS, Masks, extensions
from sideplug.contract.codec import pack


def begun(reply: Reply, cached: int) -> frames.Begun:
    """BEGUN: the reply's prompt is taken, and `cached` of its tokens need not be run."""
    form = extensions({TOOLS.name: reply.calls})
    return frames.Begun(reply.turn, reply.prompt_tokens, cached, reply.prompt_hash, extensions=form)


def ask(reply: Reply, ask: Ask, codes: np.ndarray, scales: np.ndarray, gates: int) -> frames.Ask:
    """ASK: the question, with the tap's codes (1, K, R) and scales (1, K), and the text that was not sent yet.

    gates: bit p is part p's. Where the device has the head, z goes along in float16.
    """
    start, ids = reply.unsent()
    z = pack(ask.z_1D, int8=False)[0] if reply.head == "device" else None
    open_gates = [gates] if len(reply.gates) > 1 else []
    masks = _masks(reply, ask.at) if reply.head == "device" else {}
    return frames.Ask(reply.turn, reply.run, [ask.at], start, ids, codes, scales, open_gates, z, extensions=masks)


def _masks(reply: Reply, at: int) -> frames.Extensions:
    """Which tokens the device may pick at this position, where the reply has a grammar."""
    allowed = reply.allowed(at)
    if allowed is None or reply.guide is None:
        return {}
    packed, numbers = grammar.pack_mask(allowed), reply.guide.numbers
    if packed in numbers:
        return extensions({GRAMMAR.name: Masks([numbers[packed]])})
    if len(numbers) == MAX_MASKS:
        numbers.clear()  # the device's masks are replaced, one by one
    numbers[packed] = number = len(numbers)
    return extensions({GRAMMAR.name: Masks([number], {number: packed})})


def tokens(reply: Reply, part: Part, last: bool) -> frames.Tokens:
    """TOKENS: settled tokens with their text. `last`: no text follows, so nothing of it is held back."""
    text = reply.text.push(part.ids, last)
    return frames.Tokens(reply.turn, part.at, part.ids, text, part.by, part.tops if reply.top else [])


def rest(reply: Reply) -> frames.Tokens | None:
    """TOKENS without ids: the text that was held back until the reply ended; None if there is none."""
    text = reply.text.push([], last=True)
    return frames.Tokens(reply.turn, reply.settled, [], text, "cloud") if text else None


def done(reply: Reply, why: str) -> frames.Done:
    """DONE: the reply has ended, as `why` says ("stop", "length" or "cancelled"), and what it took."""
    counts = dict(vars(reply.counts))
    if not counts["trunk"]:
        del counts["trunk"]  # older devices do not know it
    return frames.Done(reply.turn, why, reply.prompt_tokens, reply.reply_tokens, counts)
