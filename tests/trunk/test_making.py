"""From writers' texts to a trunk on a tiny model: it helps a writer whom it has not read; a list names licences."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sideplug.contract.errors import DataError, InputError
from sideplug.contract.text import Prompt
from sideplug.device.client import Client
from sideplug.readers import Example
from sideplug.training.head import Head
from sideplug.trunk import making
from sideplug.trunk.making import Writer
from sideplug.trunk.texts import read_writers
from tests.conftest import Cloud
from tests.training.test_update import quiet

LINES = (
    "the old mill stands by the river",
    "the miller has a dog",
    "rain fell over the hill",
    "we went down to the inn",
)


def writer(name: str, seed: int) -> Writer:
    rng = np.random.default_rng(seed)
    texts = [" and ".join(rng.choice(LINES, 4)) + ". " for _ in range(10)]
    return Writer(name, "CC0", [Example(Prompt(text=""), text, name) for text in texts])


def test_it_helps_a_writer_whom_it_has_not_read(cloud: Cloud, tmp_path: Path) -> None:
    client, told = Client.at(cloud.url), list[str]()
    writers = [writer(name, seed) for seed, name in enumerate(("Ada", "Bo", "Cid"))]
    config = replace(making.CONFIG, epochs=60, learning_rate=1e-2)
    trunk, worth = making.make(client, writers, tmp_path, "small", 4, quiet, told.append, config, 24)
    assert trunk.title == "small 4"
    assert trunk.base == cloud.base.fingerprint
    assert worth.trunk < worth.base - 0.2
    assert worth.line in told
    assert trunk.gate.kind == "linear"
    assert trunk.gate.weight_D.any()
    assert len(trunk.card["held_out"]) == 1
    again, _ = making.make(client, writers, tmp_path, "small", 4, quiet, config=config, width=24)
    for name, value in trunk.params.items():
        np.testing.assert_array_equal(again.params[name], value)
    with pytest.raises(InputError, match="at least 2 writers"):
        making.make(client, writers[:1], tmp_path, "small", 4, quiet)


def test_a_piece_of_the_head_is_the_head_of_its_candidates() -> None:
    rng = np.random.default_rng(0)
    ids = np.arange(0, 200, 2, dtype=np.int32)
    rows, bias = rng.normal(size=(150, 8)).astype(np.float32), rng.normal(size=150).astype(np.float32)
    whole = Head(ids, rows, bias)
    piece = whole.piece(np.array([3, 10, 50]), 30, rng)
    assert piece.ids.tolist() == [6, 20, 100]
    np.testing.assert_array_equal(piece.rows_CD[:3], rows[[3, 10, 50]])
    assert piece.rows_CD.shape == (33, 8)
    z = rng.normal(size=(4, 8)).astype(np.float32)
    logits = whole._logits(z)
    lse = np.log(np.exp(logits).sum(1))
    targets = np.array([6, 20, 100, 6], np.int32)
    got = piece.loss(z, piece.column(targets), piece.log_weight(z, lse))
    np.testing.assert_allclose(got, lse - logits[np.arange(4), whole.column(targets)], atol=1e-4)


def test_a_list_says_whose_text_is_under_which_licence(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"{line}, again and again. " * 3}) + "\n" for line in LINES)
    (tmp_path / "a.jsonl").write_text(rows, "utf-8")
    listed = tmp_path / "texts.json"
    listed.write_text(json.dumps([{"writer": "Ada L.", "licence": "CC0", "file": "a.jsonl"}]), "utf-8")
    (only,) = read_writers(listed, "", 4, 0, lambda line: None)
    assert (only.name, only.licence, len(only.examples)) == ("Ada L.", "CC0", 4)
    left_out = list[str]()
    assert read_writers(listed, "", 3, 0, left_out.append) == []
    assert "fewer than 4" in left_out[0]
    with pytest.raises(DataError, match="is not there"):
        listed.write_text(json.dumps([{"writer": "Ada", "licence": "CC0", "file": "b.jsonl"}]), "utf-8")
        read_writers(listed, "", 4, 0, lambda line: None)
