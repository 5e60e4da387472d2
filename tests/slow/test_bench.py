"""`sideplug bench --quick` on a tiny model, as its user would run it: all systems, cut in the middle, gone on with."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import eventually
from tests.tiny_model import make_llama

psutil = pytest.importorskip("psutil", reason="pip install 'sideplug[bench]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="pip install 'sideplug[bench]'"),
]


def processes(folder: str) -> list[str]:
    """Those that have something to do with this folder."""
    found = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    return [line for line in found if folder in line and "pytest" not in line.split("sideplug")[0]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The run's folder and its result; it was killed once, when some cells were there."""
    folder = tmp_path_factory.mktemp("bench")
    make_llama(folder / "tiny", context=4096)
    command = [sys.executable, "-m", "sideplug", "bench", str(folder / "tiny"), "--quick", "--json"]
    command += ["--out", str(folder / "out")]
    env = {**os.environ, "SIDEPLUG_CACHE": str(folder / "cache")}
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env)
    while not any(path.read_text().count("\n") > 6 for path in folder.glob("out/*.cells.jsonl")):
        assert first.poll() is None
        time.sleep(0.2)
    first.kill()
    first.wait()
    eventually(lambda: not processes(str(folder)))  # nothing goes on beside the run that goes on
    (cells,) = folder.glob("out/*.cells.jsonl")
    before = cells.read_text().splitlines()
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    again = [json.loads(line)["key"] for line in before[1:] if line.endswith("}")]
    assert not any(f": {key}\n" in done.stderr for key in again)  # measured once
    assert not cells.exists()
    return folder, json.loads(Path(json.loads(done.stdout)["result"]).read_text(encoding="utf-8"))


def test_every_system_has_its_figures(ran: tuple[Path, dict[str, Any]]) -> None:
    _, found = ran
    assert found["absent"] == {"device, llama.cpp": "needs the model as a GGUF file"}
    for task in ("authors", "facts"):
        for name, system in found["systems"].items():
            speeds = [cell for cell in found["speed"] if (cell["task"], cell["system"]) == (task, name)]
            assert len(speeds) == (1 if name.startswith("device") else 2), name
            if task == "authors":  # facts may be answered with nothing by a model that knows nothing
                assert [cell for cell in speeds if cell.get("tokens_s", {}).get("runs", 0) < 2] == [], name
            judged = [cell for cell in found["quality"] if (cell["task"], cell["system"]) == (task, name)]
            assert bool(judged) != bool(system["like"]), name


def test_what_must_hold_of_any_model(ran: tuple[Path, dict[str, Any]]) -> None:
    """Traffic and round trips are what each system's way of splitting says, whatever the model."""
    _, found = ran

    def cell(name: str) -> dict[str, Any]:
        return next(c for c in found["speed"] if (c["task"], c["system"], c["rtt_ms"]) == ("authors", name, 50))

    assert cell("cloud only")["round_trips"]["max"] == 0
    assert cell("ungated")["round_trips"]["median"] == 1
    assert cell("per layer")["round_trips"]["min"] >= 2  # layers of the tiny model
    assert cell("gated, lookahead")["round_trips"]["median"] < 1
    assert cell("SPA as in the paper")["bytes_down"]["median"] > cell("cloud only")["bytes_down"]["median"] + 3 * 64 * 2
    slow, fast = (cell(name)["tokens_s"]["median"] for name in ("per layer", "cloud only"))
    assert slow < 1000 / 50 / 2 < fast  # two round trips of 50 ms a token, against none
    timed = [c for c in found["speed"] if c.get("limit_tokens_s")]
    assert all(c["tokens_s"]["median"] > 0 for c in timed)
    # Where the line's limit is far below what a tiny model writes; else a whole reply may arrive at one blow.
    slowed = [c for c in timed if c["limit_tokens_s"] < 500]
    assert len({c["system"] for c in slowed}) > 3
    assert [c for c in slowed if c["tokens_s"]["median"] > 1.05 * c["limit_tokens_s"]] == []


def test_the_report(ran: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = ran
    (page,), (table,) = folder.glob("out/*.html"), folder.glob("out/*.md")
    assert page.read_text().count("<svg") >= 5
    assert "## Speed: facts" in table.read_text()
    (result,) = folder.glob("out/*_quick.json")
    before = page.read_text()
    page.unlink()
    subprocess.run([sys.executable, "-m", "sideplug", "bench", "--report", str(result)], check=True)
    assert page.read_text() == before
