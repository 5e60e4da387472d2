"""Has the cloud's base read what a plugin's parts ask for: the tokens of texts that they may say.

A device has no tokenizer. Each text is sent once as READ, and EXAMPLE tells its tokens; the cloud keeps none of it.
It does not know what a part does with them. Test: pytest tests/device/test_reading.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sideplug.contract.capabilities import TOKENS
from sideplug.contract.errors import Busy, CloudError, InputError, ProtocolError, Untrusted
from sideplug.contract.frames import Example, Read
from sideplug.contract.text import Prompt
from sideplug.device.session import Session
from sideplug.plugins import Plugin

LONGEST_WAIT_S = 60.0  # for a cloud that has no room
MANY = 50  # texts: a person is told why a reply waits
AT_ONCE, CHARACTERS_AT_ONCE = 64, 32_000  # texts under way, where the cloud need not run its model for them

Progress = Callable[[int, int], None]  # of how many texts so many are read


def read_for(session: Session, plugin: Plugin, progress: Progress = lambda done, count: None) -> int:
    """Have the base read what the plugin's parts have not read yet, and keep it in the plugin's folder.

    Return how many texts were read. What came before an error is kept. Raises CloudError and its kin.
    """
    count = 0
    base = session.model.fingerprint
    for part in plugin.parts:
        texts = part.unread(base)
        if not texts:
            continue
        progress(0, len(texts))
        ids: list[list[int]] = []
        try:
            read(session, texts, ids, progress)
        finally:
            known: dict[str, list[int]] = {}
            for (_, reply), each in zip(texts, ids, strict=False):
                known[reply] = known.get(reply) or each  # the same reply to two prompts, of which one is too long
            part.take_read(base, known)
            count += len(ids)
            plugin.keep_read()
    return count


def read(session: Session, texts: Sequence[tuple[Prompt, str]], ids: list[list[int]], progress: Progress) -> None:
    """Append the tokens of each reply to `ids`, in their order; [] for one that the base can't read."""
    came: dict[int, list[int]] = {}
    under_way: set[int] = set()
    turned_away: list[int] = []
    following = 0
    alone = TOKENS.name in session.granted

    def has_room() -> bool:
        if not alone:
            return len(under_way) < session.readings
        size = sum(len(texts[number][1]) for number in under_way)
        return not under_way or (len(under_way) < AT_ONCE and size < CHARACTERS_AT_ONCE)

    while len(ids) < len(texts):
        try:
            while turned_away:
                _ask(session, texts, turned_away[-1])
                turned_away.pop()
            while following < len(texts) and has_room():
                _ask(session, texts, following)
                under_way.add(following)
                following += 1
            frame = session.receive()
            if not isinstance(frame, Example) or frame.number not in under_way:
                raise Untrusted("the cloud sends something else than the tokens that were asked for")
            came[frame.number] = frame.ids.tolist()
            under_way.discard(frame.number)
        except Busy as error:
            if error.number not in under_way:
                raise
            time.sleep(min(error.retry_s or 1.0, LONGEST_WAIT_S))
            turned_away.append(error.number)
        except InputError as error:  # too long for this base
            if error.number not in under_way:
                raise
            came[error.number] = []
            under_way.discard(error.number)
        except (CloudError, ProtocolError) as error:
            session.reconnect(error)
            under_way.clear()
            came.clear()
            turned_away.clear()
            following = len(ids)
        while len(ids) in came:
            ids.append(came.pop(len(ids)))
            session.progressed()
            progress(len(ids), len(texts))


def _ask(session: Session, texts: Sequence[tuple[Prompt, str]], number: int) -> None:
    prompt, reply = texts[number]
    session.send(Read(number, reply, False, **prompt.to_read(), tokens=TOKENS.name in session.granted))
