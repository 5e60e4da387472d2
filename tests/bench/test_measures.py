"""What figures are made with: bytes on the line, bootstrap intervals, the energy meter, tasks from a person's files."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from sideplug.bench.shaper import Network, shaped
from sideplug.contract.errors import InputError

psutil = pytest.importorskip("psutil", reason="pip install 'sideplug[bench]'")
pytestmark = pytest.mark.twin

from sideplug.bench import tasks  # noqa: E402
from sideplug.bench.measures import backward_bytes, contains_words, disk_bytes, line_limit, reply_rate  # noqa: E402
from sideplug.bench.meters import Energy, machine  # noqa: E402
from sideplug.bench.spreads import bootstrap, spread  # noqa: E402
from sideplug.contract.frames import ModelInfo  # noqa: E402
from sideplug.contract.version import __version__  # noqa: E402
from sideplug.plugins.file import WEIGHTS  # noqa: E402
from sideplug.readers import read  # noqa: E402
from sideplug.training.recipe import Recipe  # noqa: E402

MODEL = ModelInfo("SmolLM2-135M", "ab" * 32, 30, 576, 49152, 8192, True)


def test_every_byte_is_counted_by_its_direction() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            line, _ = server.accept()
            with line:
                while line.recv(1 << 16):
                    line.sendall(b"x" * 700)

        threading.Thread(target=answer, daemon=True).start()
        with shaped(f"ws://127.0.0.1:{server.getsockname()[1]}", Network(10)) as far:
            assert far.passed() == (0, 0)
            with socket.create_connection(("127.0.0.1", int(far.url.rsplit(":", 1)[1]))) as line:
                for n in (1, 2, 3):
                    line.sendall(b"y" * 50)
                    got = b""
                    while len(got) < 700:
                        got += line.recv(1 << 16)
                    assert far.passed() == (700 * n, 50 * n)


def test_a_bootstrap_interval_holds_the_mean_of_the_whole() -> None:
    found = bootstrap([(1.0, 1), (2.0, 1), (6.0, 2), (3.0, 1)])
    assert found["mean"] == pytest.approx(12 / 5)
    assert found["low"] < found["mean"] < found["high"]
    assert bootstrap([(2.0, 1), (4.0, 2)]) == {"mean": 2.0, "low": 2.0, "high": 2.0, "examples": 2}
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "runs": 3}


def test_a_difference_over_the_same_examples_is_without_the_spread_of_the_texts() -> None:
    texts = np.random.default_rng(0).uniform(100, 400, 40)
    base, ours = ([(loss, 100) for loss in texts + shift] for shift in (0.0, -5.0))
    both = bootstrap(base), bootstrap(ours)
    assert both[0]["low"] < both[1]["high"]  # the intervals overlap, and say nothing
    assert bootstrap(ours, base) == {"mean": -0.05, "low": -0.05, "high": -0.05, "examples": 40}
    mixed = bootstrap(ours[:20] + base[20:], base)
    assert mixed["low"] < mixed["mean"] == -0.025 < mixed["high"] < 0


def test_an_energy_counter_may_wrap(tmp_path: Path) -> None:
    meter = tmp_path / "intel-rapl:0"
    meter.mkdir()
    (meter / "energy_uj").write_text("900000\n")
    (meter / "max_energy_range_uj").write_text("1000000\n")
    energy = Energy(tmp_path)
    (meter / "energy_uj").write_text("400000\n")
    assert energy.joules == pytest.approx(0.5)
    assert Energy(tmp_path / "none").joules is None


@pytest.mark.parametrize(
    ("reply", "measures"),
    [("tea", ("exact", "loss")), ("a long answer of more words than eight, as people write", ("rouge", "loss"))],
)
def test_a_task_of_ones_own(tmp_path: Path, reply: str, measures: tuple[str, ...]) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"instruction": f"q{n}", "output": reply}) + "\n" for n in range(30)))
    task = tasks.from_file(file, 20, tmp_path)
    assert task.measures == measures
    (user,) = task.users
    assert [example.prompt.messages[-1]["content"] for example in user.test if example.prompt.messages] == [
        "q27",
        "q28",
        "q29",
    ]
    assert len(user.train) == 27
    assert user.file.read_text().count("\n") == 27


def test_a_chat_is_not_learnt_twice(tmp_path: Path) -> None:
    """Each assistant turn is an example; in a user's file the turns before it are context and no more."""
    turns = [{"role": role, "content": f"{role} {n}"} for n in range(3) for role in ("user", "assistant")]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(4)))
    (user,) = tasks.from_file(tmp_path / "chat.jsonl", 20, tmp_path).users
    assert [example.reply for example in read(user.file)] == [example.reply for example in user.train]


@pytest.mark.parametrize(
    ("text", "target", "held"),
    [
        ("Its tag is 1.", "1", True),
        ("It is 10.", "1", False),
        ("not at all", "no", False),
        ("It's C++ code", "C++", True),
    ],
)
def test_a_target_is_whole_words(text: str, target: str, held: bool) -> None:
    assert contains_words(text, target) is held


def test_pace_is_of_what_comes_behind_the_first_piece() -> None:
    told = {"times_s": [1.0, 1.0, 2.0, 3.0], "tokens": 4}  # two tokens at once, then one a second
    assert reply_rate(told) == pytest.approx(1.0)
    assert reply_rate({"times_s": [1.0], "tokens": 1}) == reply_rate({"times_s": [], "tokens": 0}) == 0.0


def test_the_lines_own_limit() -> None:
    assert line_limit(1.0, 500, 500, Network(100, 0, 1)) == pytest.approx(1 / (0.1 + 0.008), rel=0.01)
    assert line_limit(0.0, 1000, 10, Network(100, 0, 1)) == pytest.approx(1 / 0.008, rel=0.01)
    assert line_limit(0.0, 0, 0, Network(0)) is None


def test_plain_text_of_ones_own_is_continued(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("\n\n".join(f"Day {n}. " + "The mill stood still. " * 20 for n in range(12)))
    task = tasks.from_file(tmp_path / "notes.txt", 20, tmp_path)
    assert task.measures == ("loss",)
    assert task.prompts[0].text
    with pytest.raises(InputError, match="at least 3 examples"):
        (tmp_path / "one.txt").write_text("A single line.")
        tasks.from_file(tmp_path / "one.txt", 20, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--system", "ourz"], "there is no system 'ourz'"),
        (["--data", "none.jsonl"], "none.jsonl"),
        (["--report", "none.json"], "none.json can't be read"),
    ],
)
def test_a_typo_gets_one_sentence(tmp_path: Path, arguments: list[str], said: str) -> None:
    import subprocess

    command = [sys.executable, "-m", "sideplug", "bench", "--out", str(tmp_path / "out"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "size"), [("ladder", 17152), ("attention", 25108), ("paper", 142080), ("paper-added", 142080)]
)
def test_what_a_plugins_backward_pass_keeps(tmp_path: Path, kind: str, size: int) -> None:
    """Bytes a token, counted by hand: states, values and slopes of each rung, and the codes; each array once. Of
    attention: in each block rows of two norms, what they give, q, keys and values, weights and what they take, value
    and slope; two norms' deviations; at the end a norm, value and slope."""
    plugin = Recipe(kind).new_plugin(MODEL)
    assert backward_bytes(plugin) == size
    plugin.save(tmp_path / "plugin")
    (tmp_path / "plugin" / "versions").mkdir()
    (tmp_path / "plugin" / "versions" / "000001.safetensors").write_bytes(bytes(100))  # not what is in use
    assert disk_bytes(tmp_path / "plugin") == (tmp_path / "plugin" / WEIGHTS).stat().st_size


def test_a_figure_stands_with_this_version_and_in_a_checkout_with_its_commit() -> None:
    stands = machine()
    assert stands["sideplug"] == __version__
    root = Path(__file__).parents[2]
    asked = subprocess.run(["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    known = asked.stdout.strip() if (root / ".git").exists() else ""
    assert stands.get("commit", "").removesuffix("-dirty") == known
