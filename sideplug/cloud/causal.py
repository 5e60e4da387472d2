"""Whether a model can be served at all, by its config: it must be a decoder, which continues a text.

It is asked before weights are fetched, and before an engine is recommended. Test: pytest tests/cloud/test_causal.py
"""

from __future__ import annotations

from typing import Any

from sideplug.contract.errors import UnknownModel

# Families of encoder-decoders whose config may not say so, as transformers and llama.cpp call them.
ENCODER_DECODERS = frozenset(
    (
        *("t5", "mt5", "umt5", "longt5", "byt5", "t5gemma", "t5gemma2", "t5encoder", "switch_transformers"),
        *("bart", "mbart", "plbart", "mvp", "pegasus", "pegasus_x", "bigbird_pegasus", "blenderbot"),
        *("blenderbot-small", "led", "marian", "m2m_100", "nllb-moe", "prophetnet", "xlm-prophetnet", "fsmt"),
        *("encoder-decoder", "speech_to_text", "speech-encoder-decoder", "vision-encoder-decoder", "whisper"),
        *("moonshine", "seamless_m4t", "seamless_m4t_v2", "pix2struct", "udop"),
    )
)
ENCODERS = frozenset(
    (
        *("bert", "roberta", "xlm-roberta", "distilbert", "albert", "electra", "camembert", "deberta"),
        *("deberta-v2", "mpnet", "modernbert", "nomic_bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2"),
        *("neo-bert", "eurobert", "clip", "siglip", "vit", "wav2vec2"),
    )
)
_ENCODER_HEADS = (
    *(
        "ForMaskedLM",
        "ForSequenceClassification",
        "ForTokenClassification",
        "ForQuestionAnswering",
        "ForMultipleChoice",
    ),
    *("ForImageClassification", "ForCTC", "ForAudioClassification"),
)


def check_decoder(name: str, config: dict[str, Any]) -> None:
    """Raises UnknownModel for the config of an encoder-decoder (T5, BART) or an encoder (BERT)."""
    family, given = config.get("model_type"), config.get("architectures")
    architectures = [each for each in given if isinstance(each, str)] if isinstance(given, list) else []
    called = ", ".join(architectures) or str(family)
    decodes = any("ForCausalLM" in each or "LMHead" in each for each in architectures)
    if not decodes and (config.get("is_encoder_decoder") is True or family in ENCODER_DECODERS):
        raise UnknownModel(
            f"{name} is an encoder-decoder ({called}), which can't be served yet: give a model that continues text, "
            f"such as smollm2-135m"
        )
    is_encoder = bool(architectures) and all(each.endswith(_ENCODER_HEADS) for each in architectures)
    if not decodes and (is_encoder or family in ENCODERS):
        raise UnknownModel(
            f"{name} is an encoder ({called}), which writes no text: give a model that continues text, such as "
            f"smollm2-135m"
        )
