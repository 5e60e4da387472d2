"""The benchmark's parts: one table, one shape of module, settings from the command line, sessions that are timed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("psutil", reason="pip install 'sideplug[bench]'")
pytestmark = pytest.mark.twin

from sideplug.bench import parts, sessions  # noqa: E402
from sideplug.bench.parts import PARTS, load, run_part, settings_of  # noqa: E402
from sideplug.contract.errors import InputError  # noqa: E402
from tests.conftest import Cloud  # noqa: E402


@pytest.mark.parametrize("name", PARTS)
def test_a_part_has_what_the_command_needs(name: str) -> None:
    part = load(name)
    assert isinstance(part.QUICK, part.Settings)
    assert part.Settings() != part.QUICK
    assert callable(part.run)
    assert callable(part.summary)


def test_every_file_of_parts_is_in_the_table() -> None:
    assert {file.stem for file in Path(parts.__file__).parent.glob("*.py")} - {"__init__"} == set(PARTS)


def test_settings_are_changed_by_name() -> None:
    person, network = load("person"), load("network")
    assert settings_of(person, False, []) == person.Settings()
    assert settings_of(person, True, ["facts=20", "widths=64, 256"]).widths == (64, 256)
    assert settings_of(person, True, ["kind=attention"]).kind == "attention"
    changed = settings_of(network, False, ["rtt-ms=0.5", "up_mbit=0.1", "rounds=2"])
    assert (changed.rtt_ms, changed.up_mbit, changed.rounds) == ((0.5,), 0.1, 2)
    for wrong in ("speed=3", "rounds", "rounds=many", "rounds=1,2", "rtt_ms=", "rounds=1.5"):
        with pytest.raises(InputError):
            settings_of(network, False, [wrong])


@dataclass(frozen=True)
class Settings:
    rounds: int = 3


def test_a_result_is_written_where_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = ModuleType("sideplug.bench.parts.toy")
    part.Settings, part.QUICK = Settings, Settings(1)  # type: ignore[attr-defined]
    saved: list[str] = []

    def run(model: str, settings: Settings, save: parts.Save) -> parts.Result:
        save({"rounds": 0})
        saved.extend(file.read_text() for file in tmp_path.rglob("toy_quick.json"))
        return {"model": model, "rounds": settings.rounds}

    part.run, part.summary = run, lambda result: [f"{result['rounds']} rounds"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sideplug.bench.parts.toy", part)
    monkeypatch.setitem(PARTS, "toy", "a toy")
    path, result, lines = run_part("toy", "m", True, [], tmp_path / "out")
    assert path == tmp_path / "out" / "toy_quick.json"
    assert json.loads(path.read_text()) == result == {"model": "m", "rounds": 1}
    assert lines == ["1 rounds"]
    assert saved == ['{\n  "rounds": 0\n}\n']


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--part", "speed"], f"there is no part 'speed'; there are {', '.join(PARTS)}"),
        (["--set", "rounds=1"], "give --part too"),
        (["--part", "decode", "--task", "facts"], "must not be given"),
        (["--part", "decode", "--set", "round=1"], "rounds=7"),
    ],
)
def test_a_wrong_part_gets_one_sentence(tmp_path: Path, arguments: list[str], error: str) -> None:
    command = [sys.executable, "-m", "sideplug", "bench", "--out", str(tmp_path / "out"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert error in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_rate_is_of_the_time_in_which_all_decode() -> None:
    start = time.perf_counter()
    fast = [start + n for n in range(11)]
    slow = [start + 2 + 2 * n for n in range(5)]  # from 2 to 10
    rate = sessions.decode_rate([lambda ids, tokens: fast, lambda ids, tokens: slow], [[1], [2]], 9)
    assert rate == pytest.approx((8 + 4) / 8)
    apart = sessions.decode_rate([lambda ids, tokens: fast[:2], lambda ids, tokens: slow[2:]], [[1], [2]], 9)
    assert apart == 0.0


def test_a_session_says_when_its_tokens_came(cloud: Cloud) -> None:
    with sessions.open_session(cloud.url) as opened:
        times = sessions.token_stream(opened)([5, 6, 7], 4)
        assert times == sorted(times)
        assert len(times) == opened.usage.reply_tokens
    assert opened.link.closed
