"""The base model's head on the device: it picks the token itself, and sends 4 bytes up instead of a correction.

The rows come down once and are kept in a file of their own (V · D float32, mapped, not read); after that the cloud
sends z with each ask, and learns nothing of the plugin but the tokens that it chose. The same seed gives the same text
as the head in the cloud, but for near ties: z travels as float16, and a quantised head rounds where this one does not.

Letters: T tokens, V vocabulary, D width. It does not know plugins. Test: pytest tests/device/test_device_head.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sideplug.contract.errors import ProtocolError, Stopped
from sideplug.contract.frames import ROWS_PER_FRAME, Head, Rows
from sideplug.device.link import Link


@dataclass(frozen=True)
class Bend:
    """What the base does to its head's logits: times scale, then a soft cap (0: none)."""

    scale: float = 1.0
    softcap: float = 0.0

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """Raw logits → the base's."""
        raw = raw * np.float32(self.scale)
        return np.tanh(raw / self.softcap) * np.float32(self.softcap) if self.softcap else raw


def rows(link: Link, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, Bend]]:
    """The head's rows of these token ids (int32), some at a time: rows (n, D) float32, biases (n,), the bend."""
    for part, at in enumerate(range(0, len(ids), ROWS_PER_FRAME)):
        wanted = ids[at : at + ROWS_PER_FRAME]
        link.send(Rows(part, wanted))
        frame = link.receive()
        if not isinstance(frame, Head) or frame.part != part or not len(frame.rows) == len(frame.bias) == len(wanted):
            raise ProtocolError(f"the cloud must answer ROWS by HEAD, got {frame.kind.name}")
        yield frame.rows.astype(np.float32), frame.bias, Bend(frame.scale, frame.softcap)


@dataclass
class DeviceHead:
    """rows_VD and bias_V float32."""

    rows_VD: np.ndarray
    bias_V: np.ndarray
    bend: Bend

    @classmethod
    def fetch(
        cls, link: Link, folder: Path, fingerprint: str, vocab: int, progress: Callable[[int], None] = lambda n: None
    ) -> DeviceHead:
        """The kept head of this base, or the cloud's, kept from now on. `progress` hears the rows that came.

        Raises CloudError when the connection drops, Stopped when the disk is full: then nothing is kept.
        """
        path = folder / fingerprint
        kept = cls._kept(path, vocab)
        if kept is not None:
            return kept
        aside = path.with_suffix(".part")
        biases: list[np.ndarray] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                for part, bias, bend in rows(link, np.arange(vocab, dtype=np.int32)):
                    file.write(part.tobytes())
                    biases.append(bias)
                    about = {"vocab": vocab, "width": part.shape[1], "scale": bend.scale, "softcap": bend.softcap}
                    progress(sum(map(len, biases)))
                file.write(np.concatenate(biases).astype(np.float32).tobytes())
            path.with_suffix(".json").write_text(json.dumps(about))
            aside.replace(path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise Stopped(f"the head could not be kept in {folder}: {error.strerror or error}") from error
        found = cls._kept(path, vocab)
        assert found is not None
        return found

    @classmethod
    def _kept(cls, path: Path, vocab: int) -> DeviceHead | None:
        try:
            about = json.loads(path.with_suffix(".json").read_text())
            numbers = np.memmap(path, np.float32, "r")
            width = about["width"]
            if about["vocab"] != vocab or numbers.size != vocab * (width + 1):
                return None
            bend = Bend(about["scale"], about["softcap"])
        except (OSError, ValueError, KeyError):
            return None
        return cls(numbers[: vocab * width].reshape(vocab, width), numbers[vocab * width :], bend)

    def logits(self, z_1D: np.ndarray) -> np.ndarray:
        """z (1, D), corrected → (V,) float32."""
        raw: np.ndarray = self.rows_VD @ z_1D[0]
        return self.bend(raw + self.bias_V)
