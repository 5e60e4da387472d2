"""It turns a GGUF file into a model folder: config.json and a tokenizer made from its header, and the file itself.

The weights stay in the file, where `sideplug.cloud.weights.Gguf` reads them. A file that it does not support raises
Unfit; then transformers converts it. It does not know any engine. Test: pytest tests/cloud/test_gguf_file.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from sideplug.cloud.causal import check_decoder
from sideplug.cloud.model_config import check_shapes, check_sizes
from sideplug.cloud.model_files import Unfit, check_whole, reading
from sideplug.cloud.weights import GGUF_INDEX, GGUF_WEIGHTS, Gguf
from sideplug.contract.errors import UnknownModel

_FAMILIES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
# The patterns of llama.cpp's pretokenizers, by name. That of GPT-2 is in the tokenizers library.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_PATTERNS = {"llama-bpe": _LLAMA3, "llama3": _LLAMA3, "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2}
_GPT2 = ("default", "gpt-2")
_DIGITS = ("smollm", "codeshell", "exaone")  # GPT-2's pattern, but every digit is a piece of its own
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)  # as llama-gguf-split names them
_CONTROL, _USER_DEFINED = 3, 4  # token types


def unpack(path: Path, folder: Path) -> None:
    """Write the model folder of a GGUF file. Raises Unfit, UnknownModel (a damaged file), OSError (a full disk)."""
    reader, header = read_header(path)
    with reading(path.name):
        _unpack(path, folder, reader, header)


def read_header(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return the gguf package's reader of a whole file, and the values of its header by their names.

    Raises UnknownModel for a file that is damaged, cut off, or a part of a split model.
    """
    from gguf import GGUFReader

    check_whole(path)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UnknownModel(f"{path.name} can't be read: it is no GGUF file")
    part = _PART.search(path.name)
    try:
        reader = GGUFReader(path)
        header = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # the library raises many classes for a damaged file
        raise UnknownModel(f"{path.name} can't be read: it is cut off or damaged, fetch it again") from error
    number, count = (header.get(name) for name in ("split.no", "split.count"))
    if isinstance(count, int) and count > 1:
        which = f"part {number + 1} of {count}" if isinstance(number, int) else f"one of {count} parts"
    elif part and int(part[2]) > 1:
        which = f"part {int(part[1])} of {int(part[2])}"
    else:
        return reader, header
    raise UnknownModel(f"{path.name} is {which} of a split model: merge the parts first (llama-gguf-split --merge)")


def stop_ids(header: dict[str, Any]) -> list[int]:
    """Return the ids that end a reply by the header: eos, eot and eom."""
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = [header[f"tokenizer.ggml.{name}"] for name in names if _has(header, name)]
    return list(dict.fromkeys(token for token in found if type(token) is int))


def _unpack(path: Path, folder: Path, reader: Any, header: dict[str, Any]) -> None:
    check_decoder(path.name, {"model_type": header.get("general.architecture")})
    names = {tensor.name for tensor in reader.tensors}
    config = _config(header, names)
    shapes = {t.name: tuple(int(size) for size in reversed(t.shape)) for t in reader.tensors}
    hub_names = {Gguf.name(name): name for name in Gguf.all_names(config["num_hidden_layers"])}
    check_shapes(config, {hub_names[name]: shape for name, shape in shapes.items()}, path.name)
    _write(folder / "config.json", config)
    _write_tokenizer(header, folder)
    ids = {"bos_token_id": header["tokenizer.ggml.bos_token_id"]} if _has(header, "bos_token_id") else {}
    _write(folder / "generation_config.json", ids | {"eos_token_id": stop_ids(header)})
    index = {
        tensor.name: {
            "type": tensor.tensor_type.name,
            "dtype": str(tensor.data.dtype),
            "shape": list(tensor.data.shape),
            "offset": int(tensor.data_offset),
        }
        for tensor in reader.tensors
    }
    _write(folder / GGUF_INDEX, index)
    try:
        os.link(path, folder / GGUF_WEIGHTS)
    except OSError:  # another file system
        shutil.copyfile(path, folder / GGUF_WEIGHTS)


def _has(header: dict[str, Any], name: str) -> bool:
    return f"tokenizer.ggml.{name}" in header


def _config(header: dict[str, Any], names: set[str]) -> dict[str, Any]:
    family = header.get("general.architecture")
    if family not in _FAMILIES:
        raise Unfit(f"its architecture is {family}")
    if "rope_freqs.weight" in names or f"{family}.rope.scaling.type" in header:
        raise Unfit("its rotary positions are scaled")
    if f"{family}.expert_count" in header:
        raise Unfit("it is a mixture of experts")

    def of(name: str, default: Any = None) -> Any:
        value = header.get(f"{family}.{name}", default)
        if value is None:
            raise Unfit(f"its header lacks {name}")
        return value

    width, heads = of("embedding_length"), of("attention.head_count")
    for name, value in header.items():
        if name in (f"{family}.attention.head_count", f"{family}.attention.head_count_kv") and isinstance(value, list):
            raise Unfit(f"its {name} differs from block to block")
    said = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": of("block_count")}
    check_sizes(said, "its header")
    head_size = of("attention.key_length", of("rope.dimension_count", width // heads))
    if of("rope.dimension_count", head_size) != head_size:
        raise Unfit("only a part of each head has rotary positions")
    known = {Gguf.name(name) for name in Gguf.all_names(of("block_count"))}
    if names - known:
        raise Unfit(f"it has a tensor {sorted(names - known)[0]}")
    config = {
        "architectures": [_FAMILIES[family]],
        "model_type": family,
        "hidden_size": width,
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": of("attention.head_count_kv", heads),
        "head_dim": head_size,
        "max_position_embeddings": of("context_length"),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "rope_theta": of("rope.freq_base", 10000.0),
        "vocab_size": len(header.get("tokenizer.ggml.tokens") or ()),
        "tie_word_embeddings": "output.weight" not in names,
        "hidden_act": "silu",
    }
    for name in ("bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id"):
        if not _has(header, name):
            continue
        token = header[f"tokenizer.ggml.{name}"]
        if type(token) is not int or not 0 <= token < config["vocab_size"]:
            raise UnknownModel(f"its header says {name} {token}, of {config['vocab_size']} tokens")
        if name in ("bos_token_id", "eos_token_id"):
            config[name] = token
    check_sizes(config, "its header")
    return config


def _write_tokenizer(header: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    kind, pretokenizer = header.get("tokenizer.ggml.model"), header.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise Unfit(f"its tokenizer is of the kind {kind}")
    tokens, types = header["tokenizer.ggml.tokens"], header["tokenizer.ggml.token_type"]
    merges = [tuple(line.split(" ", 1)) for line in header["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pretokenizer in _DIGITS:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    elif pretokenizer in _PATTERNS:
        split = pre_tokenizers.Split(Regex(_PATTERNS[pretokenizer]), "isolated")
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    elif pretokenizer in _GPT2:
        tokenizer.pre_tokenizer = byte_level
    else:
        raise Unfit(f"its pretokenizer is {pretokenizer!r}")
    tokenizer.decoder = decoders.ByteLevel()
    for add, kind in ((tokenizer.add_special_tokens, _CONTROL), (tokenizer.add_tokens, _USER_DEFINED)):
        chosen = [token for token, its_kind in zip(tokens, types, strict=True) if its_kind == kind]
        add([AddedToken(token, normalized=False) for token in chosen])
    config: dict[str, Any] = {}
    for name, field in (("bos_token", "bos_token_id"), ("eos_token", "eos_token_id")):
        if _has(header, field):
            config[name] = tokens[header[f"tokenizer.ggml.{field}"]]
    if header.get("tokenizer.ggml.add_bos_token") and "bos_token" in config:
        bos = config["bos_token"]
        start = (bos, header["tokenizer.ggml.bos_token_id"])
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[start])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "tokenizer_config.json", config)
    if "tokenizer.chat_template" in header:
        (folder / "chat_template.jinja").write_text(header["tokenizer.chat_template"], "utf-8")


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), "utf-8")
