"""One validator for all plugin files: size first, what they say, every tensor; an odd one is a sentence and no more."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from sideplug.contract.errors import PluginError
from sideplug.device.plugin_store import PluginStore, import_to
from sideplug.plugins import Plugin
from sideplug.plugins.file import PLUGIN, WEIGHTS
from tests.conftest import a_plugin

BASE = "f" * 64
Config = dict[str, Any]
Tensors = dict[str, np.ndarray]
GOOD = a_plugin(BASE)


def parts_of(plugin: Plugin = GOOD) -> tuple[Config, Tensors]:
    config: Config = plugin.config()["parts"][0]
    return config, {**plugin.trained.tensors(), "gate": plugin.trained.gate.weight_D}


def part_bytes(change: Callable[[Config, Tensors], None]) -> bytes:
    config, tensors = parts_of()
    config, tensors = json.loads(json.dumps(config)), dict(tensors)
    change(config, tensors)
    return safetensors.numpy.save(tensors, {"sideplug": json.dumps(config)})


def put(key: str, value: Any) -> Callable[[Config, Tensors], None]:
    return lambda config, tensors: config.update({key: value})


def tensor(name: str, value: np.ndarray | None) -> Callable[[Config, Tensors], None]:
    def change(config: Config, tensors: Tensors) -> None:
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value

    return change


def gate(**numbers: Any) -> Callable[[Config, Tensors], None]:
    return lambda config, tensors: config["gate"].update(numbers)


A = GOOD.trained.params["a"]
ODD_PARTS: dict[str, Callable[[Config, Tensors], None]] = {
    "a name that climbs": put("name", "../../evil"),
    "a name with a slash": put("name", "a/b"),
    "an absolute name": put("name", "/tmp/evil"),
    "no name": put("name", ""),
    "a name of ours": put("name", "tape"),
    "a long name": put("name", "x" * 65),
    "a name that is no text": put("name", 7),
    "another kind": put("kind", "of-tomorrow"),
    "a kind that is no text": put("kind", ["ladder"]),
    "no tap": put("tap", "x"),
    "a tap with other layers": put("tap", "l0.1-r16-s0-int8"),
    "a tap of another rank": put("tap", "l0.1.2-r15-s0-int8"),
    "a huge tap": put("tap", "l0.1.2-r16384-s0-int8"),
    "an about that is a list": put("about", []),
    "a base with spaces": put("base_fingerprint", "a b"),
    "a base that steers a terminal": put("base_model_name_or_path", "\x1b]0;x\x07"),
    "a format that is a text": put("format", "3"),
    "a gate that is a word": put("gate", "open"),
    "a gate of another kind": gate(kind="ajar"),
    "a gate without a bias": gate(bias=None),
    "a gate with an infinite bias": gate(bias=float("inf")),
    "a gate with a long dial": gate(dial=[0.0] * 5000),
    "a gate with more": gate(more=1),
    "a parameter less": tensor("params.a", None),
    "a parameter more": tensor("params.z", np.zeros(3, np.float32)),
    "a tensor of another": tensor("evil", np.zeros(3, np.float32)),
    "float64": tensor("params.a", A.astype(np.float64)),
    "float16": tensor("params.a", A.astype(np.float16)),
    "int8": tensor("params.a", A.astype(np.int8)),
    "not finite": tensor("params.a", np.full_like(A, np.nan)),
    "infinite": tensor("params.c_bias", np.full(64, np.inf, np.float32)),
    "another shape": tensor("params.a", A[:, :8]),
    "another order": tensor("params.a", A.transpose(0, 2, 1)),
    "a bias that would be broadcast": tensor("params.c_bias", np.zeros(1, np.float32)),
    "a row that would be broadcast": tensor("params.a_bias", np.zeros((1, 24), np.float32)),
    "no output": tensor("params.c", None),
    "phrases of another type": tensor("phrases", np.zeros(3, np.float32)),
    "phrases in two dimensions": tensor("phrases", np.zeros((3, 3), np.int32)),
    "phrases that are no ids": tensor("phrases", np.array([-2], np.int32)),
    "phrases beyond a vocabulary": tensor("phrases", np.array([1 << 30], np.int32)),
    "more phrases than there may be": tensor("phrases", np.zeros((1 << 16) + 1, np.int32)),
    "a gate of float64": tensor("gate", np.zeros(0, np.float64)),
    "a gate with weights of none": tensor("gate", np.zeros(64, np.float32)),
    "no gate": tensor("gate", None),
}


def plain(error: BaseException) -> str:
    """Its sentence, which has one line and no words of Python."""
    text = str(error)
    assert "\n" not in text
    for word in ("Error", "NoneType", "reshape", "Traceback", "object", "dtype(", "KeyError", "\x1b"):
        assert word not in text, text
    return text


@pytest.mark.parametrize("how", ODD_PARTS)
def test_an_odd_part(tmp_path: Path, how: str) -> None:
    """In a folder, and in a file from somebody else; nothing is written for it."""
    data = part_bytes(ODD_PARTS[how])
    GOOD.save(tmp_path / "p")
    (tmp_path / "p" / WEIGHTS).write_bytes(data)
    with pytest.raises(PluginError) as caught:
        Plugin.load(tmp_path / "p")
    plain(caught.value)

    def whole(change: Callable[[Config, Tensors], None]) -> bytes:
        config, tensors = parts_of()
        config, tensors = json.loads(json.dumps(config)), dict(tensors)
        change(config, tensors)
        about = {"format": config["format"], "parts": [config]}
        named = {f"{config['name']}.{name}": value for name, value in tensors.items()}
        return safetensors.numpy.save(named, {"sideplug": json.dumps(about)})

    with pytest.raises(PluginError) as caught:
        import_to(tmp_path / "a" / "b" / "brought", whole(ODD_PARTS[how]), "the file")
    plain(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p"]


def test_a_kind_of_another_version_is_not_damaged(tmp_path: Path) -> None:
    GOOD.save(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(part_bytes(put("kind", "of-tomorrow")))
    with pytest.raises(PluginError, match="is of a kind that this version does not have, 'of-tomorrow'") as caught:
        Plugin.load(tmp_path)
    assert "damaged" not in str(caught.value)


PLUGIN_JSON: dict[str, bytes] = {
    "empty": b"",
    "no json": b"{",
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "deep": b"[" * 100_000,
    "not UTF-8": b'{"format": "\xff"}',
    "parts that climb": b'{"format":3,"base_fingerprint":"f","base_model_name_or_path":"m","parts":["../p"]}',
    "no parts": b'{"format":3,"base_fingerprint":"f","base_model_name_or_path":"m","parts":[]}',
    "nine parts": json.dumps(
        {"format": 3, "base_fingerprint": "f", "base_model_name_or_path": "m", "parts": list("abcdefghi")}
    ).encode(),
    "one part twice": b'{"format":3,"base_fingerprint":"f","base_model_name_or_path":"m","parts":["manner","manner"]}',
    "parts that are numbers": b'{"format":3,"base_fingerprint":"f","base_model_name_or_path":"m","parts":[1]}',
    "a base that is a number": b'{"format":3,"base_fingerprint":1,"base_model_name_or_path":"m","parts":["manner"]}',
    "a format that is a list": b'{"format":[3]}',
    "too long": b" " * (1 << 20) + b"{}",
}


@pytest.mark.parametrize("what", PLUGIN_JSON)
def test_one_odd_folder_never_breaks_the_list_of_all(tmp_path: Path, what: str) -> None:
    GOOD.save(tmp_path / "good")
    GOOD.save(tmp_path / "odd")
    (tmp_path / "odd" / PLUGIN).write_bytes(PLUGIN_JSON[what])
    store = PluginStore(tmp_path)
    assert [entry.name for entry in store.entries()] == ["good", "odd"]
    store.load("good")
    with pytest.raises(PluginError) as caught:
        store.load("odd")
    plain(caught.value)


@pytest.mark.parametrize("size", [1 << 31, 1 << 40])
def test_the_size_is_looked_at_first(tmp_path: Path, size: int) -> None:
    """A file that is larger than any plugin is not read: this one would not fit into the memory."""
    GOOD.save(tmp_path)
    os.truncate(tmp_path / WEIGHTS, size)
    with pytest.raises(PluginError, match="too large for a plugin's file: it has"):
        Plugin.load(tmp_path)


@pytest.mark.parametrize("head", [b"\xff" * 8, (1 << 40).to_bytes(8, "little"), b"\x02" + bytes(7) + b"{}", b"abc"])
def test_a_header_that_lies(tmp_path: Path, head: bytes) -> None:
    GOOD.save(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(head + b"x" * 100)
    with pytest.raises(PluginError) as caught:
        Plugin.load(tmp_path)
    plain(caught.value)


def test_numbers_of_training_that_are_none_are_read(tmp_path: Path) -> None:
    """A loss that was not a number breaks no plugin, and no page that shows it."""
    plugin = a_plugin(BASE)
    plugin.trained.about = {"loss": float("nan"), "best": [float("inf"), 1.5]}
    plugin.save(tmp_path)
    assert Plugin.load(tmp_path).about == {"loss": None, "best": [None, 1.5]}
