"""The frames that a reply sends to its device: BEGUN, ASK, TOKENS, DONE. They are made here and nowhere else.

Test: pytest tests/cloud/test_engine.py
"""

from __future__ import annotations

import numpy as np

from sideplug.cloud.reply import Ask, Part, Reply
from sideplug.contract.codec import pack
from sideplug.contract.wire import Frame, Kind


def begun(reply: Reply, cached: int) -> Frame:
    """BEGUN: the prompt is taken, and `cached` of its tokens need not be run."""
    control = {"turn": reply.turn, "prompt": reply.prompt_tokens, "kept": cached, "hash": reply.prompt_hash}
    return Frame(Kind.BEGUN, control)


def ask(reply: Reply, question: Ask, codes: np.ndarray, scales: np.ndarray) -> Frame:
    """ASK: a question, what the device may see for it, and the text that it has not been sent in this run."""
    start, ids = reply.unsent()
    control = {"turn": reply.turn, "run": reply.run, "at": [question.at], "from": start, "ids": ids}
    tensors = {"codes": codes, "scales": scales}
    if reply.head == "device":
        tensors["z"], _ = pack(question.z_1D, int8=False)
    return Frame(Kind.ASK, control, tensors)


def tokens(reply: Reply, part: Part, last: bool) -> Frame:
    """TOKENS: settled tokens and their text. `last`: nothing follows, so text that was held back goes out too."""
    text = reply.text.push(part.ids, last)
    control = {"turn": reply.turn, "at": part.at, "ids": part.ids, "text": text, "by": part.by}
    return Frame(Kind.TOKENS, {**control, "top": part.tops} if reply.top else control)


def rest(reply: Reply) -> Frame | None:
    """TOKENS without tokens: the text that was still held back when the reply ended; None if there is none."""
    text = reply.text.push([], last=True)
    if not text:
        return None
    return Frame(Kind.TOKENS, {"turn": reply.turn, "at": reply.settled, "ids": [], "text": text, "by": "cloud"})


def done(reply: Reply, why: str) -> Frame:
    """DONE: why the reply ended ("stop", "length", "cancelled") and what it took."""
    control = {"turn": reply.turn, "why": why, "prompt": reply.prompt_tokens, "reply": reply.reply_tokens}
    return Frame(Kind.DONE, {**control, "counts": vars(reply.counts)})
