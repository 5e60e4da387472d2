"""Makes the kept files of a version: a plugin, its export and seals, a transcript of the wire, a tape, a keys file.

    python -m tests.compat.make                                     tests/compat/VERSION/ of this version
    PYTHONPATH=OLD python tests/compat/make.py --format-2           tests/compat/0.1.0/, from a checkout OLD of 0.1.0

A version's files are made once, when it is released, and never again: tests/test_compat.py holds every later version
to them. So this refuses to write into a folder that exists. What they hold is in `expected.json` beside them. All of it
is of a tiny random model, and no person's.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
PASSPHRASE = "the river was high"  # of everything sealed here
QUESTION = "Is it far?"
EXAMPLES = [(QUESTION, "As far as your feet are tired."), ("And the mill?", "The mill stood still.")]
WIDTH, MODEL_WIDTH = 8, 64
DIAL = (-3.0, -1.0, 0.0, 2.0)


def tensor_digests(tensors: dict[str, np.ndarray]) -> dict[str, str]:
    """SHA-256 of each tensor's dtype, shape and bytes, by name."""
    return {
        name: hashlib.sha256(f"{value.dtype.str} {value.shape} ".encode() + value.tobytes()).hexdigest()
        for name, value in sorted(tensors.items())
    }


def codes() -> np.ndarray:
    """Codes (2, 3, 16) that a kept plugin is asked about."""
    return np.linspace(-1, 1, 2 * 3 * 16, dtype=np.float32).reshape(2, 3, 16)


def a_small_plugin(base: str) -> Any:
    """A plugin for the tiny model with everything that a trained one has: parameters, gate, dial, phrases, about."""
    from sideplug.contract.gate import Gate
    from sideplug.contract.tap import Tap
    from sideplug.plugins import Plugin

    plugin = Plugin.new("ladder", base, "tiny", Tap((0, 1, 2), 16), WIDTH, MODEL_WIDTH)
    rng = np.random.default_rng(3)
    part = plugin.trained
    for name, value in part.params.items():
        part.params[name] = (value + rng.normal(0, 0.5, value.shape)).astype(np.float32)
    weight = rng.normal(size=MODEL_WIDTH).astype(np.float32)
    part.gate = Gate("linear", weight, 0.5, -20.0, 0.5, DIAL)
    part.phrases = np.array([5, 6, 7, -1, 8, 9], np.int32)
    part.about = {"examples": 2, "best_loss": 1.25}
    return plugin


def make(out: Path) -> None:
    """Write the kept files of this version into the new folder `out`."""
    from sideplug.cloud.keys import Keys
    from sideplug.contract.text import Prompt
    from sideplug.device import lock
    from sideplug.device.address import Address
    from sideplug.device.audit import Recorder
    from sideplug.device.client import Client
    from sideplug.device.reply import DecodeOptions
    from sideplug.plugins import sealed_file
    from sideplug.readers import Example
    from sideplug.training.recorder import record, score
    from tests.conftest import a_cloud
    from tests.tiny_model import make_llama

    out.mkdir()
    with tempfile.TemporaryDirectory() as folder, a_cloud(make_llama(Path(folder) / "tiny")) as cloud:
        plugin = a_small_plugin(cloud.base.fingerprint)
        recorder = Recorder(out / "wire3.sp")
        client = Client(Address(cloud.url), record=recorder)
        with client.connect(plugin) as session:
            waiting = session.generate(QUESTION, 12, options=DecodeOptions(window=0)).text
            ahead = session.generate(Prompt(text="Anna wrote"), 12, options=DecodeOptions(top=2)).text
            examples = [Example(Prompt.user(ask), say, f"kept:{n}") for n, (ask, say) in enumerate(EXAMPLES, 1)]
            tape = record(session, plugin.tap, examples, out / "train.tape")
            judged = score(session, examples)
        recorder.close()
        tokens = [tape[i].ids.tolist() for i in range(len(tape))]
    for name in ("plugin", "locked"):
        plugin.save(out / name)
    lock.lock(out / "locked", PASSPHRASE)
    (out / "plugin.sideplug").write_bytes(sealed_file.seal(plugin.to_bytes()))
    (out / "sealed.sideplug").write_bytes(sealed_file.seal(plugin.to_bytes(), PASSPHRASE))
    keys = Keys(out / "keys.json")
    key = keys.add("ada", sessions=3, tokens_per_minute=600)
    (out / ".keys.json.lock").unlink()
    expected = {
        "base": plugin.base,
        "tensors": tensor_digests(plugin.trained.tensors()),
        "gate": tensor_digests({"gate": plugin.trained.gate.weight_D})["gate"],
        "delta": np.round(plugin.trained.correct(codes()).astype(float), 4).tolist(),
        "replies": [waiting, ahead],
        "tape": tokens,
        "tape_z_sum": round(float(sum(tape[i].z_TD.sum() for i in range(len(tokens)))), 3),
        "scores": np.round(judged.plugin.astype(float), 4).tolist(),
        "key": key,
    }
    (out / "expected.json").write_text(json.dumps(expected, ensure_ascii=False) + "\n")


def make_format_2(out: Path) -> None:
    """Write a plugin of format 2 and its export into the new folder `out`, with the code of sideplug 0.1."""
    from sideplug.device.plugin import Plugin

    from sideplug.contract.tap import Tap
    from sideplug.device import vault

    out.mkdir()
    plugin = Plugin.new("ladder", "0" * 64, "tiny", Tap((0, 1, 2), 16), WIDTH, MODEL_WIDTH)
    plugin.save(out / "plugin")
    (out / "plugin.sideplug").write_bytes(vault.seal(plugin.to_bytes()))


if __name__ == "__main__":
    if sys.argv[1:] == ["--format-2"]:
        make_format_2(HERE / "0.1.0")
    else:
        from sideplug import __version__

        make(HERE / __version__)
