"""sideplug trunk … in real processes: made, installed, begun with; a sentence for what can't be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sideplug.plugins import Plugin
from sideplug.plugins.trunk import Trunk
from tests.conftest import Cloud, Run
from tests.test_cli import sentence

WORDS = "the miller and his old dog went down to the river before the rain came over the hill"


def text(writer: str, passages: int = 8) -> str:
    texts = [f"{writer} wrote of day {n}: " + " ".join([WORDS] * 2) + "." for n in range(passages)]
    return "".join(json.dumps({"text": each}) + "\n" for each in texts)


@pytest.fixture
def writers(tmp_path: Path) -> Path:
    folder = tmp_path / "writers"
    folder.mkdir()
    for name in ("Ada", "Bo", "Cid"):
        (folder / f"{name}.jsonl").write_text(text(name), "utf-8")
    (folder / "Dot.txt").write_text("Too short.", "utf-8")
    return folder


def test_a_trunk_is_made_installed_and_begun_with(run: Run, cloud: Cloud, writers: Path, tmp_path: Path) -> None:
    out, how = tmp_path / "letters.trunk", ["--cloud", cloud.url]
    made = run("trunk", "train", writers, "--out", out, "--licence", "CC0", *how, "--json")
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert [each["name"] for each in told["texts"]] == ["Ada", "Bo", "Cid"]
    assert {each["licence"] for each in told["texts"]} == {"CC0"}
    assert len(told["held_out"]) == 1
    assert told["worth"]["trunk"] < told["worth"]["base"] - 0.1
    assert "Dot has" in made.stderr
    assert "left out" in made.stderr
    sentence(run("trunk", "train", writers, "--out", out, "--licence", "CC0", *how), 2, "is there already", "--force")
    packaged = json.loads(run("trunk", "list", "--json").stdout)
    assert [each["name"] for each in packaged] == ["prose"]
    pulled = run("trunk", "pull", out)
    assert pulled.returncode == 0, pulled.stderr
    trunk = Trunk.load(out)
    assert trunk.sha256 in pulled.stdout
    listed = [each["sha256"] for each in json.loads(run("trunk", "list", "--json").stdout)]
    assert sorted(listed) == sorted([trunk.sha256, *(each["sha256"] for each in packaged)])
    info = run("trunk", "info", "letters").stdout
    assert "Ada" in info
    assert "CC0" in info
    assert "(held out)" in info

    data = tmp_path / "mine.jsonl"
    data.write_text(text("Eve", 6), "utf-8")
    begun = run("train", data, "--out", tmp_path / "p", *how)
    assert begun.returncode == 0, begun.stderr
    assert "it begins with the trunk letters 1" in begun.stderr
    assert "the trunk is not tuned" in begun.stderr
    assert "your words: " in begun.stderr
    part = Plugin.load(tmp_path / "p").trained
    assert part.kind_name == "mlp"
    assert len(part.bias)
    assert part.about["trunk"]["sha256"] == trunk.sha256
    for name, value in trunk.params.items():
        assert (part.params[name] == value).all()
    tuned = run("train", data, "--out", tmp_path / "q", *how, "--epochs", "2")
    assert tuned.returncode == 0, tuned.stderr
    without = run("train", data, "--out", tmp_path / "r", *how, "--trunk", "none", "--epochs", "2", "--json")
    assert without.returncode == 0, without.stderr
    assert json.loads(without.stdout)["trunk"] is None


def test_what_can_not_be_a_trunk_is_said(run: Run, cloud: Cloud, writers: Path, tmp_path: Path) -> None:
    out, how = tmp_path / "x.trunk", ["--cloud", cloud.url]
    sentence(run("trunk", "train", writers, "--out", out, *how), 2, "under which licence", "--licence")
    sentence(run("trunk", "train", tmp_path / "no", "--out", out, "--licence", "x", *how), 2)
    one = tmp_path / "one"
    one.mkdir()
    (one / "Ada.jsonl").write_text(text("Ada"), "utf-8")
    sentence(run("trunk", "train", one, "--out", out, "--licence", "x", *how), 2, "at least 2 writers")
    listed = tmp_path / "texts.json"
    listed.write_text('[{"writer": "Ada", "file": "one/Ada.jsonl"}]', "utf-8")
    sentence(run("trunk", "train", listed, "--out", out, *how), 2, "licence", "Ada")
    listed.write_text('{"writer": 3}', "utf-8")
    sentence(run("trunk", "train", listed, "--out", out, *how), 2, "a list of")
    broken = tmp_path / "broken.trunk"
    broken.write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    for command in (["pull", broken], ["info", broken]):
        sentence(run("trunk", *command), 2, "is no trunk")
    sentence(run("trunk", "info", "nobody"), 2, "there is no trunk 'nobody'")
    sentence(run("trunk", "pull", "http://example.org/x.trunk"), 2, "https://")
    sentence(run("train", one, "--out", tmp_path / "p", "--trunk", "nobody", *how), 2, "there is no trunk")
    assert not out.exists()
