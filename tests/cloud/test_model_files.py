"""Every file of a model is read whole, or refused in one sentence that names it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sideplug.cloud.model_config import MOST
from sideplug.cloud.model_files import INDEX
from sideplug.cloud.store import find
from sideplug.cloud.tokenizer import Tokenizer
from sideplug.cloud.weights import Safetensors
from sideplug.contract.errors import UnknownModel
from tests.conftest import write_gguf

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n"
JSON_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "m"))


def refusal(name: object) -> str:
    with pytest.raises(UnknownModel) as caught:
        base = find(str(name))
        Tokenizer(base.folder)
    said = str(caught.value)
    assert not re.search("NoneType|Traceback|Error|reshape|\n", said), said
    return said


@pytest.mark.parametrize("name", [*JSON_FILES, "chat_template.jinja", "model.safetensors"])
@pytest.mark.parametrize("content", [POINTER, ""])
def test_what_stands_in_the_place_of_a_file(model: Path, name: str, content: str) -> None:
    (model / name).write_text(content, "utf-8")
    assert re.search(f"{re.escape(name)} is {'a git-LFS pointer' if content else 'empty'}", refusal(model))


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize("content", ["[]", "null", "7", '"x"', "true", "{", "[" * 100_000, "\udcff", "nan"])
def test_a_json_file_that_is_no_object(model: Path, name: str, content: str) -> None:
    (model / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert re.search(f"{re.escape(name)} must be (a JSON object|JSON|UTF-8 text)", refusal(model))


@pytest.mark.parametrize("name", [n for n in MOST if not n.startswith("n_")])
@pytest.mark.parametrize("value", [0, -1, 1 << 40, 2.5, "64", True, [64]])
def test_sizes_that_are_none(model: Path, name: str, value: object) -> None:
    config = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.json").write_text(json.dumps({**config, name: value}), "utf-8")
    assert f"{name} must be a whole number from 1 to" in refusal(model)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"num_hidden_layers": 4000}, "num_hidden_layers is 4000, but the weights have 2 layers"),
        ({"vocab_size": 1 << 23}, "model.embed_tokens.weight would be 8388608 × 64, but it is"),
        ({"head_dim": 4096}, "q_proj.weight would be 16384 × 64"),
        ({"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": None}, "must divide the hidden_size 64"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must divide 4 heads, got 3"),
        ({"hidden_size": 128}, "would be"),
        ({"intermediate_size": 1 << 20}, "gate_proj.weight would be"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a number above 0"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a number above 0"),
        ({"rope_theta": -1}, "rope_theta must be a number above 0"),
        ({"model_type": None}, "must say its model_type"),
    ],
)
def test_sizes_that_do_not_fit(model: Path, changed: dict[str, object], why: str) -> None:
    config = json.loads((model / "config.json").read_text("utf-8")) | changed
    (model / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}), "utf-8")
    assert why in refusal(model)


def shard(model: Path) -> dict[str, str]:
    """The model's weights in two files and an index."""
    weights = load_file(model / "model.safetensors")
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, own in parts.items():
        save_file({name: weights[name] for name in own}, model / file)
    (model / "model.safetensors").unlink()
    return {name: file for file, own in parts.items() for name in own}


def index(model: Path, weight_map: object) -> None:
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), "utf-8")


@pytest.mark.parametrize("stray", ["zz-old.safetensors", "model.safetensors", "consolidated.safetensors"])
def test_the_index_decides_which_files_are_the_models(model: Path, stray: str) -> None:
    weights = load_file(model / "model.safetensors")
    index(model, shard(model))
    before = find(str(model))
    save_file({name: np.zeros_like(value) for name, value in weights.items()}, model / stray)
    assert find(str(model)).fingerprint == before.fingerprint
    kept = Safetensors(model)
    assert all(np.array_equal(kept.array(name), value) for name, value in weights.items())


def test_one_file_is_the_model_where_there_is_no_index(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    save_file({name: np.zeros_like(value) for name, value in weights.items()}, model / "zz.safetensors")
    assert np.array_equal(Safetensors(model).array("model.norm.weight"), weights["model.norm.weight"])


def break_map(change: Callable[[dict[str, str]], object]) -> Callable[[Path], object]:
    return lambda model: index(model, change(shard(model)))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (break_map(lambda m: []), "must have a weight_map"),
        (break_map(lambda m: {}), "must have a weight_map"),
        (break_map(lambda m: dict.fromkeys(m, "../other.safetensors")), "must name files beside it"),
        (break_map(lambda m: dict.fromkeys(m, 7)), "must name files beside it"),
        (break_map(lambda m: dict.fromkeys(m, "gone.safetensors")), "lacks its file gone.safetensors"),
        (break_map(lambda m: dict.fromkeys(m, "model-00001-of-00002.safetensors")), "its index puts there"),
        (lambda m: (shard(m), (m / "model-00002-of-00002.safetensors").unlink()), "lacks its file model-00002"),
        (lambda m: (m / "model.safetensors").unlink(), "must have its weights as .safetensors"),
        (lambda m: cut(m / "model.safetensors", -500), "is cut off: it has"),
        (lambda m: cut(m / "model.safetensors", 20), "is cut off"),
        (lambda m: cut(m / "model.safetensors", 5), "is cut off"),
        (lambda m: (m / "model.safetensors").write_bytes(b"PK" + b"x" * 99), "is no safetensors file, or damaged"),
        (lambda m: (m / "tokenizer.json").write_text('{"model": 7}', "utf-8"), "tokenizer.json can't be read"),
        (lambda m: (m / "chat_template.jinja").write_bytes(b"\xff"), "chat_template.jinja must be UTF-8"),
        (lambda m: (m / "tokenizer_config.json").write_text('{"chat_template": 7}', "utf-8"), "must be text"),
        (lambda m: (m / "config.json").rename(m / "m.gguf"), "must have config.json: give its file m.gguf instead"),
    ],
)
def test_damaged_folders(model: Path, damage: Callable[[Path], object], why: str) -> None:
    damage(model)
    assert why in refusal(model)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


NAMES = ["a/..", "../a", "a/b@..", "a/b@", "a/b@../../x", "-a/b", "a/.b", "a/b/c", "", " ", "a\0b", "x" * 5000]
NAMES += ["~nobody-here/x", "a//b", "a/b c", "é/b", "x.gguf"]


@pytest.mark.parametrize("name", NAMES)
def test_odd_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.match("a model must be smollm2-135m|there is no file", refusal(name))


@pytest.mark.parametrize(
    ("name", "damage", "why"),
    [
        ("m.gguf", lambda p: cut(p, -500), "is cut off"),
        ("m.gguf", lambda p: cut(p, 3000), "is cut off"),
        ("m.gguf", lambda p: cut(p, 10), "is cut off"),
        ("m.gguf", lambda p: p.write_text(POINTER, "utf-8"), "is a git-LFS pointer"),
        ("m.gguf", lambda p: p.write_bytes(b""), "is empty"),
        ("m.gguf", lambda p: p.write_bytes(b"PK\3\4" + b"x" * 99), "is no GGUF file"),
        ("m-00002-of-00003.gguf", lambda p: None, "is part 2 of 3 of a split model: merge the parts first"),
        ("M-00001-of-00002.GGUF", lambda p: None, "is part 1 of 2 of a split model"),
    ],
)
def test_damaged_gguf_files(tiny: Path, tmp_path: Path, name: str, damage: Callable[[Path], object], why: str) -> None:
    write_gguf(tmp_path / name, tiny)
    damage(tmp_path / name)
    assert why in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda w: w.add_block_count(1 << 30), "num_hidden_layers must be a whole number"),
        (lambda w: w.add_block_count(0), "num_hidden_layers must be a whole number"),
        (lambda w: w.add_block_count(4000), "the weights have 2 layers"),
        (lambda w: w.add_head_count(0), "num_attention_heads must be a whole number"),
        (lambda w: w.add_head_count_kv(3), "must divide 4 heads, got 3"),
        (lambda w: w.add_context_length(1 << 31), "max_position_embeddings must be a whole number"),
        (lambda w: w.add_embedding_length(128), "would be"),
        (lambda w: w.add_layer_norm_rms_eps(0.0), "rms_norm_eps must be a number above 0"),
        (lambda w: w.add_eos_token_id(1 << 30), "eos_token_id"),
        (lambda w: w.add_eot_token_id(1 << 30), "eot_token_id"),
        (lambda w: w.add_token_types([1]), "can't be read"),
        (lambda w: w.add_uint16("split.count", 2), "is one of 2 parts of a split model"),
    ],
)
def test_numbers_of_a_gguf_header(tiny: Path, tmp_path: Path, change: Callable[[object], None], why: str) -> None:
    write_gguf(tmp_path / "m.gguf", tiny, change=change)
    assert why in refusal(tmp_path / "m.gguf")


def test_what_ends_a_reply_of_a_gguf_file(tiny: Path, tmp_path: Path) -> None:
    def change(writer: Any) -> None:
        writer.add_eot_token_id(7)
        writer.add_eom_token_id(9)

    write_gguf(tmp_path / "m.gguf", tiny, change=change)
    assert Tokenizer(find(str(tmp_path / "m.gguf")).folder).stop_ids == {1, 7, 9}


@pytest.mark.parametrize("suffix", ["GGUF", "Gguf"])
def test_a_suffix_in_any_case(tiny: Path, tmp_path: Path, suffix: str) -> None:
    write_gguf(tmp_path / f"MODEL.{suffix}", tiny)
    assert find(str(tmp_path / f"MODEL.{suffix}")).fingerprint


def test_utf8_whatever_the_locale(model: Path) -> None:
    source = "{% for m in messages %}<｜{{ m['role'] }}｜>{{ m['content'] }}<|im_end|>{% endfor %}"
    (model / "chat_template.jinja").write_text(source, "utf-8")
    code = (
        "import sys; from pathlib import Path; from sideplug.cloud.tokenizer import Tokenizer; "
        "from sideplug.contract.text import Prompt; "
        "print(ascii(Tokenizer(Path(sys.argv[1])).render(Prompt.user('hi').messages)))"
    )
    env = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == ascii("<｜user｜>hi<|im_end|>")


@pytest.mark.parametrize(
    ("file", "content", "stops"),
    [
        ("generation_config.json", {"eos_token_id": [5, 9]}, {1, 5, 9}),
        ("generation_config.json", {"eos_token_id": 7}, {1, 7}),
        ("generation_config.json", {"eos_token_id": None}, {1}),
        ("tokenizer_config.json", {"eot_token": "<|im_start|>"}, {0, 1}),
        ("tokenizer_config.json", {"eom_token": {"content": "<|im_start|>"}}, {0, 1}),
        ("tokenizer_config.json", {}, {1}),
    ],
)
def test_what_ends_a_reply(model: Path, file: str, content: dict[str, object], stops: set[int]) -> None:
    (model / file).write_text(json.dumps(content), "utf-8")
    assert Tokenizer(model).stop_ids == stops


@pytest.mark.parametrize("name", ["<|eot_id|>", "<end_of_turn>", "<|eom_id|>"])
def test_a_control_token_of_a_usual_name_ends_a_reply_though_no_file_says_so(model: Path, name: str) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text("utf-8"))
    added = {**tokenizer["added_tokens"][0], "id": 340, "content": name}
    tokenizer["added_tokens"].append(added)
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    assert Tokenizer(model).stop_ids == {1, 340}
