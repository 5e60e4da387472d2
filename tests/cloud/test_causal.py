"""What can't be served is refused as what it is, before its weights are fetched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import pytest

from sideplug.cloud import store
from sideplug.cloud.causal import check_decoder
from sideplug.contract.errors import UnknownModel

ENCODER_DECODERS: list[dict[str, Any]] = [
    {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
    {"model_type": "mt5"},
    {"model_type": "t5gemma", "architectures": ["T5GemmaForConditionalGeneration"]},
    {"model_type": "bart", "architectures": ["BartModel"], "is_encoder_decoder": True},
    {"model_type": "mbart", "architectures": ["MBartForConditionalGeneration"]},
    {"model_type": "pegasus", "architectures": ["PegasusForConditionalGeneration"]},
    {"model_type": "marian", "architectures": ["MarianMTModel"], "is_encoder_decoder": True},
    {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]},
    {"model_type": "somebodys-own", "architectures": ["OwnForConditionalGeneration"], "is_encoder_decoder": True},
]
ENCODERS: list[dict[str, Any]] = [
    {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
    {"model_type": "roberta"},
    {"model_type": "own", "architectures": ["OwnForSequenceClassification"]},
]
DECODERS: list[dict[str, Any]] = [
    {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "is_encoder_decoder": False},
    {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]},
    {"model_type": "mistral3", "architectures": ["Mistral3ForConditionalGeneration"]},
    {"model_type": "bart", "architectures": ["BartForCausalLM"]},
    {"model_type": "llama", "architectures": ["LlamaForSequenceClassification", "LlamaForCausalLM"]},
    {"model_type": "llama"},
    {"architectures": None},
    {},
]


@pytest.mark.parametrize("config", ENCODER_DECODERS, ids=str)
def test_an_encoder_decoder(config: dict[str, Any]) -> None:
    with pytest.raises(UnknownModel, match=r"^my/model is an encoder-decoder \(.+\), which can't be served yet: give"):
        check_decoder("my/model", config)


@pytest.mark.parametrize("config", ENCODERS, ids=str)
def test_an_encoder(config: dict[str, Any]) -> None:
    with pytest.raises(UnknownModel, match=r"^my/model is an encoder \(.+\), which writes no text"):
        check_decoder("my/model", config)


@pytest.mark.parametrize("config", DECODERS, ids=str)
def test_a_decoder(config: dict[str, Any]) -> None:
    check_decoder("my/model", config)


def test_a_folder_and_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where it lacks a tokenizer.json, or torch could be recommended."""
    monkeypatch.setenv("SIDEPLUG_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "t5"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(ENCODER_DECODERS[0]))
    with pytest.raises(UnknownModel, match=r"t5 is an encoder-decoder \(T5ForConditionalGeneration\)"):
        store.find(str(folder))
    writer = gguf.GGUFWriter(tmp_path / "t5.gguf", "t5")
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    with pytest.raises(UnknownModel, match=r"^t5\.gguf is an encoder-decoder \(t5\)"):
        store.find(str(tmp_path / "t5.gguf"))


def test_of_a_hub_model_only_the_config_is_fetched(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    config = tmp_path / "config.json"

    def one(repo: str, name: str, revision: str | None = None) -> str:
        fetched.append(name)
        return str(config)

    def all_files(repo: str, local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            raise OSError("not in the cache")
        fetched.append("everything")
        return str(tiny)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", all_files)
    config.write_text(json.dumps(ENCODER_DECODERS[3]))
    with pytest.raises(UnknownModel, match=r"^somebody/bart is an encoder-decoder \(BartModel\)"):
        store.find("somebody/bart")
    assert fetched == ["config.json"]
    shutil.copy(tiny / "config.json", config)
    assert store.find("somebody/llama").folder == tiny
    assert fetched == ["config.json", "config.json", "everything"]
