"""The base model's head on the device: the device chooses the token and sends its id instead of a correction.

The device fetches the head's rows once and keeps them in a file (V · D float32, memory-mapped). From then on the cloud
sends z with each ASK, and sees nothing of the plugin but the tokens that it chose. The same seed gives the same text as
with the head in the cloud, except at near ties: z is sent as float16, and a quantised head in the cloud rounds.

Letters: V vocabulary, D width. It does not know plugins. Test: pytest tests/device/test_device_head.py
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sideplug.contract.errors import ProtocolError, Stopped, Untrusted
from sideplug.contract.frames import ROWS_PER_FRAME, Head, Rows
from sideplug.device.link import Link


@dataclass(frozen=True)
class LogitTransform:
    """What the base model does to its raw logits: it multiplies by `scale`, then applies a soft cap (0: none)."""

    scale: float = 1.0
    softcap: float = 0.0

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """Return the base's logits from raw logits, of any shape."""
        raw = raw * np.float32(self.scale)
        return np.tanh(raw / self.softcap) * np.float32(self.softcap) if self.softcap else raw


def rows(link: Link, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, LogitTransform]]:
    """Yield the head's rows of these token ids (int32) in parts: rows (n, D) float32, biases (n,), the transform.

    Raises ProtocolError, CloudError.
    """
    transform: LogitTransform | None = None
    for part, at in enumerate(range(0, len(ids), ROWS_PER_FRAME)):
        part_ids = ids[at : at + ROWS_PER_FRAME]
        link.send(Rows(part, part_ids))
        frame = link.receive()
        if not isinstance(frame, Head) or frame.part != part or not len(frame.rows) == len(frame.bias) == len(part_ids):
            raise ProtocolError(f"the cloud must answer ROWS by HEAD, got {frame.kind.name}")
        said = LogitTransform(frame.scale, frame.softcap)
        if transform not in (None, said):
            raise Untrusted("the cloud describes the base's head in two ways")
        transform = said
        yield frame.rows.astype(np.float32), frame.bias, said


@dataclass
class DeviceHead:
    """The whole head. rows_VD (V, D) and bias_V (V,) float32."""

    rows_VD: np.ndarray
    bias_V: np.ndarray
    transform: LogitTransform

    @classmethod
    def fetch(
        cls, link: Link, folder: Path, fingerprint: str, vocab: int, progress: Callable[[int], None] = lambda n: None
    ) -> DeviceHead:
        """Return the head of a base model: from its file in `folder`, or else from the cloud, and then keep it there.

        progress: called with the number of rows that have arrived. Raises CloudError when the connection breaks and
        Stopped when the disk is full; nothing is kept then.
        """
        path = folder / hashlib.sha256(fingerprint.encode()).hexdigest()  # never a name that somebody else chose
        saved = cls._load(path, vocab)
        if saved is not None:
            return saved
        aside = path.with_suffix(".part")
        biases: list[np.ndarray] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                for part, bias, transform in rows(link, np.arange(vocab, dtype=np.int32)):
                    file.write(part.tobytes())
                    biases.append(bias)
                    header = {"vocab": vocab, "width": part.shape[1]}
                    header |= {"scale": transform.scale, "softcap": transform.softcap}
                    progress(sum(map(len, biases)))
                file.write(np.concatenate(biases).astype(np.float32).tobytes())
            path.with_suffix(".json").write_text(json.dumps(header), encoding="utf-8")
            aside.replace(path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise Stopped(f"the head could not be kept in {folder}: {error.strerror or error}") from error
        saved = cls._load(path, vocab)
        assert saved is not None
        return saved

    @classmethod
    def _load(cls, path: Path, vocab: int) -> DeviceHead | None:
        """Return the head in the files of `path`; None if there is none, or one of another size."""
        try:
            header = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            numbers = np.memmap(path, np.float32, "r")
            width = header["width"]
            if header["vocab"] != vocab or numbers.size != vocab * (width + 1):
                return None
            transform = LogitTransform(header["scale"], header["softcap"])
        except (OSError, ValueError, KeyError):
            return None
        return cls(numbers[: vocab * width].reshape(vocab, width), numbers[vocab * width :], transform)

    def logits(self, z_1D: np.ndarray) -> np.ndarray:
        """Return the logits (V,) float32 of a corrected z (1, D)."""
        raw: np.ndarray = self.rows_VD @ z_1D[0]
        return self.transform(raw + self.bias_V)
