"""Sessions whose frames come in a wrong order, at once or at random, and WebSockets that are misused.

Test: pytest -m slow tests/robustness
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from msgspec.msgpack import Ext
from websockets.frames import Frame as WebSocketFrame
from websockets.frames import Opcode

from sideplug.contract import wire
from sideplug.contract.frames import Done, Error, Kind
from sideplug.contract.progress import running_hash
from tests.robustness.generated import CAPABILITIES, Tensors, a_control, some_tensors
from tests.robustness.huge import HUGE, huge_map
from tests.robustness.inputs import wrong_tensors
from tests.robustness.raw_session import NO_GATE, OPEN, PATIENT, Input, Play, Raw
from tests.robustness.tiny_cloud import WIDTH
from tests.robustness.values import FLOATS, INTS, TEXTS, rearranged


def orders() -> Iterator[Input]:
    """Kinds where they do not belong, and the WebSocket misused."""
    goods: dict[int, tuple[dict[str, Any], Tensors]] = {
        Kind.OPEN: (OPEN, {"gate": NO_GATE}),
        Kind.PROMPT: (PATIENT, {}),
        Kind.ANSWER: (
            {"turn": 1, "run": 0, "at": [4]},
            {
                "delta": np.zeros((1, WIDTH), np.int8),
                "scales": np.ones(1, np.float32),
                "draft": np.zeros((1, 0), np.int32),
            },
        ),
        Kind.CANCEL: ({"turn": 1}, {}),
        Kind.READ: ({"number": 1, "text": "", "reply": "Anna wrote to her", "score": True}, {}),
        Kind.SCORE: ({"number": 1}, {"delta": np.zeros((3, WIDTH), np.int8), "scales": np.ones(3, np.float32)}),
        Kind.ROWS: ({"part": 0}, {"ids": np.array([1, 2], np.int32)}),
    }
    bad_prompt, bad_read = {**PATIENT, "max_tokens": 0}, {**goods[Kind.READ][0], "greedy_tokens": 600}

    def sequence(kinds: list[int], at_once: bool) -> Play:
        def play(raw: Raw, rng: random.Random) -> None:
            parts = [goods.get(abs(kind), ({"turn": 1}, {})) for kind in kinds]
            parts = [
                (bad_prompt if -kind == Kind.PROMPT else bad_read if -kind == Kind.READ else part[0], part[1])
                for kind, part in zip(kinds, parts, strict=True)
            ]
            messages = [raw.message(abs(kind), *part) for kind, part in zip(kinds, parts, strict=True)]
            if at_once:
                raw.burst(messages)
            else:
                for message in messages:
                    raw.connection.send(message)

        return play

    device = list(goods)
    for kind in range(0, 20):
        yield Input("first frame", sequence([kind], False))
        yield Input("second frame", sequence([Kind.OPEN, kind], False))
    for first in (*device, -Kind.PROMPT, -Kind.READ):
        for second in (*device, -Kind.PROMPT, -Kind.READ):
            for third in (Kind.PROMPT, Kind.CANCEL):
                yield Input("frames at once", sequence([Kind.OPEN, first, second, third], True))

    def leaving(raw: Raw, rng: random.Random) -> None:
        raw.open()
        raw.burst([raw.message(Kind.PROMPT, {**PATIENT, "max_tokens": 500}), raw.message(Kind.CANCEL, {"turn": 1})])
        raw.connection.socket.close()

    def text(raw: Raw, rng: random.Random) -> None:
        raw.sent.append("text")
        raw.connection.send("SP")

    def empty(raw: Raw, rng: random.Random) -> None:
        raw.sent.append("empty message")
        raw.connection.send(b"")

    def too_much(raw: Raw, rng: random.Random) -> None:
        raw.sent.append("17 MiB")
        raw.connection.send(bytes(17 << 20))

    def numbers(raw: Raw, rng: random.Random) -> None:
        raw.open()
        raw.number = rng.choice([0, 2, 1 << 31, (1 << 32) - 1])
        raw.send(Kind.CANCEL, {"turn": 1})

    def pieces(raw: Raw, rng: random.Random) -> None:
        raw.open()
        message = raw.message(Kind.PROMPT, PATIENT)
        raw.connection.send(message[i : i + 7] for i in range(0, len(message), 7))
        raw.drive()

    def pings(raw: Raw, rng: random.Random) -> None:
        raw.open()
        raw.sent.append("2000 pings")
        raw.connection.socket.sendall(WebSocketFrame(Opcode.PING, bytes(125)).serialize(mask=True) * 2000)

    def no_websocket(raw: Raw, rng: random.Random) -> None:
        raw.open()
        raw.sent.append("bytes that are no WebSocket frame")
        raw.connection.socket.sendall(rng.randbytes(300))

    for play in (leaving, text, empty, too_much, numbers, pieces, pings, no_websocket):
        for _ in range(4):
            yield Input(play.__name__.replace("_", " "), play, play in (leaving, too_much, no_websocket))


def at_random(seed: int) -> Iterator[Input]:
    """Sequences of frames that are mostly right, each a little wrong, or not in their order."""
    values = {int: INTS[2:9], str: TEXTS[:4], bool: [True, False], float: FLOATS}
    number = 0
    while True:
        number += 1

        def play(raw: Raw, rng: random.Random, number: int = number) -> None:
            rng = random.Random(f"{seed}/{number}")
            kinds = [rng.choice(["open", "open", "linear", "shut"]) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
            linear = kinds.count("linear")
            weights = np.asarray([rng.gauss(0, 0.2) for _ in range(linear * WIDTH)], np.float32)
            raw.open(
                gates=[{"kind": kind, "memory": rng.choice([0.0, 0.9])} for kind in kinds],
                weights=weights.reshape(linear, WIDTH),
                tap=rng.choice(["", OPEN["tap"]]),
                merge=rng.choice(["add", "add", "replace"]),
                capabilities=rng.choice(CAPABILITIES),
            )
            waiting: list[bytes] = []
            for _ in range(rng.randint(1, 10)):
                kind = next_kind(raw, rng)
                control, tensors = a_frame(raw, kind, rng)
                if rng.random() < 0.3:
                    name = rng.choice(list(control))
                    control[name] = rng.choice(values.get(type(control[name]), [control[name]]) or [control[name]])
                    if isinstance(control[name], (list, dict)):
                        control[name] = rearranged(rng, control[name])
                if tensors and rng.random() < 0.2:
                    name = rng.choice(list(tensors))
                    tensors[name] = rng.choice(list(wrong_tensors(name, tensors[name])))
                raw.asked = raw.asked or kind is Kind.PROMPT
                waiting.append(raw.message(kind, _packable(control), tensors))
                if rng.random() < 0.7:
                    raw.burst(waiting)
                    waiting = []
                with suppress(TimeoutError):
                    for _ in range(rng.choice([0, 1, 1, 2, 5])):
                        frame = raw.take(raw.connection.recv(timeout=0.05))
                        raw.asked = not isinstance(frame, (Done, Error)) and raw.asked
            raw.burst(waiting)

        yield Input(f"random {seed}/{number}", play)


def next_kind(raw: Raw, rng: random.Random) -> Kind:
    """Mostly one that may come now."""
    if rng.random() < 0.15:
        return rng.choice(list(Kind))
    if raw.asked:
        return rng.choices([Kind.ANSWER, Kind.CANCEL, Kind.READ, Kind.ROWS], [6 if raw.ask else 0, 1, 1, 1])[0]
    return rng.choices([Kind.PROMPT, Kind.READ, Kind.ROWS, Kind.CANCEL], [6, 1, 1, 1])[0]


def _packable(control: Any) -> Any:
    """Without what `wire` refuses at once: those are for the decoder's fuzzing."""
    if isinstance(control, dict):
        return {str(key): _packable(value) for key, value in control.items()}
    if isinstance(control, list):
        return [_packable(value) for value in control]
    return 0 if isinstance(control, Ext) else control


def a_frame(raw: Raw, kind: Kind, rng: random.Random) -> tuple[dict[str, Any], Tensors]:
    """A good one, so far as that can be known."""
    if rng.random() < 0.05:
        return a_control(rng, kind), some_tensors(rng, kind)
    if kind is Kind.PROMPT:
        more: dict[str, Any] = {"head": rng.choice(["cloud", "device"]), "window": rng.choice([0, 4, 32])}
        more |= {"deadline_ms": rng.choice([0, 0, 1, 50]), "top": rng.choice([0, 5])}
        more |= {"context": rng.choice([0, 4])} if "context" in raw.granted and rng.random() < 0.7 else {}
        more |= {"draft": rng.choice([[9, 9], [5] * 40])} if rng.random() < 0.3 else {}
        return {**PATIENT, "turn": rng.randint(1, 3), "max_tokens": rng.choice([1, 6, 40]), **more}, {}
    if kind is Kind.ANSWER and raw.ask is not None:
        control, tensors = raw.answer()
        if "mixture" in raw.granted and rng.random() < 0.5:
            tensors |= {"mix": np.array([rng.choice([0.0, 0.5, 1.0])], np.float32)}
            tensors |= {"mix_ids": np.array([[9, 11]], np.int32), "mix_weights": np.full((1, 2), 0.5, np.float32)}
        return control, tensors
    corrections: Tensors = {"delta": np.ones((1, WIDTH), np.int8), "scales": np.ones(1, np.float32)}
    if kind is Kind.ANSWER:
        return {"turn": 1, "run": 0, "at": [4]}, {**corrections, "draft": np.zeros((1, 0), np.int32)}
    if kind is Kind.READ:
        read = {
            "number": rng.randint(1, 3),
            "text": "",
            "reply": "Anna wrote to her brother",
            "score": rng.random() < 0.5,
            "context": "context" in raw.granted and rng.random() < 0.5,
        }
        return read, {}
    if kind is Kind.SCORE:
        return {"number": rng.randint(1, 3)}, corrections
    if kind is Kind.ROWS:
        return {"part": 1}, {"ids": np.array([1, 2, 3], np.int32)}
    if kind is Kind.OPEN:
        return dict(OPEN), {"gate": NO_GATE}
    return {"turn": rng.randint(1, 3)}, {}


def hostile() -> Iterator[Input]:
    """What takes much for little: huge maps, taps with seeds, answers and pings without end, examples nobody takes."""

    def huge(kind: str) -> Play:
        def play(raw: Raw, rng: random.Random) -> None:
            raw.open()
            number, packed = huge_map(kind)
            raw.number += 1
            raw.connection.send(wire.join(number, packed, b"", raw.number - 1))
            raw.longest = max(raw.longest, len(packed))
            raw.until(Kind.DONE)

        return play

    def seeds(raw: Raw, rng: random.Random) -> None:
        raw.open(tap=f"l0.1.2-r{WIDTH}-s{rng.randrange(1, 10**9)}-int8")
        raw.send(Kind.PROMPT, PATIENT)
        raw.drive()

    def answers_again(raw: Raw, rng: random.Random) -> None:
        raw.open()
        raw.send(Kind.PROMPT, PATIENT)
        if raw.until(Kind.ASK).kind is Kind.ASK:
            good = raw.answer()
            raw.burst([raw.message(Kind.ANSWER, *good) for _ in range(50)])
        raw.drive()

    def left_in_the_middle(raw: Raw, rng: random.Random) -> None:
        done = [5] * 300
        raw.open(gates=[{"kind": "shut"}])
        seal = running_hash(done, running_hash(PATIENT["ids"]))
        raw.send(Kind.PROMPT, {**PATIENT, "max_tokens": 400, "done": done, "hash": seal})
        raw.receive()
        raw.connection.socket.shutdown(2)

    def unscored(raw: Raw, rng: random.Random) -> None:
        raw.open()
        for number in range(8):
            raw.send(Kind.READ, {"number": number, "text": "", "reply": "Anna wrote to her. " * 20, "score": True})
        raw.until(Kind.EXAMPLE)

    def pinging(raw: Raw, rng: random.Random) -> None:
        raw.open()
        for _ in range(1000):
            raw.connection.ping(rng.randbytes(8))

    def unfinished(raw: Raw, rng: random.Random) -> None:
        raw.open()
        raw.connection.socket.sendall(WebSocketFrame(Opcode.BINARY, b"SP" * 100_000, fin=False).serialize(mask=True))
        raw.connection.socket.shutdown(2)

    for kind in HUGE:
        yield Input(f"huge {kind}", huge(kind))
    yield Input("taps with seeds", seeds)
    yield Input("ANSWER again and again", answers_again)
    yield Input("a resumed reply that is left", left_in_the_middle, ends=True)
    yield Input("examples that are never scored", unscored)
    yield Input("pings without end", pinging)
    yield Input("a message without an end", unfinished, ends=True)
