"""The device of a rival whose model is in `hf_cloud`: it shows what comes, and multiplies with its M where asked."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
from websockets.sync.client import connect


class Far:
    """The rival's device. rank: of its matrices M, one for q, k and v of each layer; 0: it never multiplies."""

    def __init__(self, url: str, rank: int) -> None:
        self._line = connect(url, compression=None, max_size=None, ping_interval=None)
        self._matrix_RR = np.zeros((rank, rank), np.float32)

    def reply(self, **request: Any) -> dict[str, Any]:
        """Return a reply and the seconds at which its tokens came (see ours.Reply)."""
        start = time.perf_counter()
        texts: list[str] = []
        times: list[float] = []
        trips = 0
        self._line.send(json.dumps({"do": "reply", **request}))
        while True:
            message = self._line.recv()
            if isinstance(message, bytes):
                code = np.frombuffer(message, np.float16).reshape(3, -1, len(self._matrix_RR)).astype(np.float32)
                self._line.send((code @ self._matrix_RR).astype(np.float16).tobytes())
                trips += 1
                continue
            event = json.loads(message)
            if event.get("done"):
                return {"text": "".join(texts), "tokens": len(times), "round_trips": trips, "times_s": times}
            texts.append(event["text"])
            times.append(time.perf_counter() - start)

    def losses(self, examples: list[dict[str, Any]]) -> list[list[float]]:
        """Return the nats of each token of each example's reply."""
        self._line.send(json.dumps({"do": "losses", "examples": examples}))
        losses: list[list[float]] = json.loads(self._line.recv())["losses"]
        return losses


def make(url: str, rank: int = 0) -> Far:
    """Return the device of the rival\'s cloud at this URL."""
    return Far(url, rank)
