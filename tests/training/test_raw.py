"""A base without a chat template is trained on text; general text comes in both forms."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sideplug.contract.text import Prompt
from sideplug.readers import Example
from sideplug.training.pipeline import Texts
from sideplug.training.raw import as_text, openings, without_chat
from tests.conftest import Run, a_cloud


def test_a_chat_as_a_text() -> None:
    told = ({"role": "user", "content": "Is it far?\n"}, {"role": "assistant", "content": "No."})
    example = Example(Prompt(messages=(*told, {"role": "user", "content": "How far?"})), "A mile.", "f:1")
    assert as_text(example).prompt.text == "Is it far?\n\nNo.\n\nHow far?\n\n"
    assert (as_text(example).reply, as_text(example).where) == ("A mile.", "f:1")
    plain = Example(Prompt(text=""), "Anna wrote.", "f:2")
    assert as_text(plain) is plain


def test_general_text_comes_in_both_forms_and_no_chat_is_left() -> None:
    asked, plain = (
        Example(Prompt.user("Where is my key?"), "Here.", "f:1"),
        Example(Prompt(text=""), "Anna wrote.", "f:2"),
    )
    general, hard = Example(Prompt.user("Hello?"), "", "", 32), Example(Prompt.user("Where is my dog?"), "", "", 32)
    texts = without_chat(Texts([asked], [plain], [general], [hard]))
    assert [each.prompt.text for each in texts.retain] == ["Hello?\n\n", *(each.prompt.text for each in openings())]
    assert [each.prompt.text for each in texts.hard_negatives] == ["Where is my dog?\n\n"]
    assert without_chat(Texts([plain], [plain], [general], [hard])).hard_negatives == []
    assert without_chat(Texts([plain], [plain], [])).retain == []


def test_a_base_without_a_template_is_trained_and_its_texts_end(tiny: Path, tmp_path: Path, run: Run) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    config = json.loads((base / "tokenizer_config.json").read_text("utf-8"))
    del config["chat_template"]
    (base / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    rows = "".join(json.dumps({"text": f"Anna wrote to her brother. Day {n}."}) + "\n" for n in range(12))
    (tmp_path / "notes.jsonl").write_text(rows, "utf-8")
    with a_cloud(base) as cloud:
        options = ("--cloud", cloud.url, "--epochs", "2", "--json")
        done = run("train", str(tmp_path / "notes.jsonl"), "--out", str(tmp_path / "p"), *options)
        assert done.returncode == 0, done.stderr
        replied = run(
            "generate", "--raw", "Anna wrote", "--plugin", str(tmp_path / "p"), "--cloud", cloud.url, "--json"
        )
        assert replied.returncode == 0, replied.stderr
        refused = run("generate", "Anna wrote", "--cloud", cloud.url)
        assert "no chat template: give plain text (--raw)" in refused.stderr
