"""Clients that are not ours before the real model, streamed and not: Simon Willison's llm, curl, OpenAI's, Anthropic's.

Each must get, to the character, what a session of ours gives. Run: make test-slow
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from sideplug.contract.text import Prompt
from sideplug.plugins import Plugin
from tests.conftest import a_session
from tests.slow.test_135m import a_plugin, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
QUESTION = "Give a tip for better sleep."
TOKENS = 24
WHO = ("base", "anna")


@dataclass
class Running:
    """A gateway's process before a cloud's. `models` and `want`: the model's name and the text, of each of WHO."""

    api: str
    models: dict[str, str]
    want: dict[str, str]


def reply(url: str, plugin: Plugin | None) -> str:
    with a_session(url, plugin) as session:
        return "".join(piece.text for piece in session.generate(Prompt.user(QUESTION), TOKENS))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    shelf = tmp_path_factory.mktemp("shelf")
    with serving() as cloud:
        plugin = a_plugin(cloud["fingerprint"], 0)
        plugin.save(shelf / "anna")
        command = ["gateway", "--cloud", cloud["url"], "--port", "0", "--plugins", str(shelf), "--json"]
        process = subprocess.Popen([sys.executable, "-m", "sideplug", *command], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            about = json.loads(process.stdout.readline())
            models = {"base": cloud["model"], "anna": f"{cloud['model']}+anna"}
            want = {"base": reply(cloud["url"], None), "anna": reply(cloud["url"], plugin)}
            assert want["base"] != want["anna"]
            yield Running(about["api"], models, want)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command: installed here already, or in an environment of its own (it brings some twenty packages)."""
    found = shutil.which("llm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found:
        return Path(found)
    folder = tmp_path_factory.mktemp("llm")
    venv.create(folder, with_pip=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "llm"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"llm could not be installed:\n{done.stderr}"
    return folder / "bin" / "llm"


@pytest.fixture(scope="module")
def asked(running: Running, llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs llm with a home of its own, in which the gateway's models are what its documentation says to write."""
    home = tmp_path_factory.mktemp("home")
    models = [
        f"- model_id: {who}\n  model_name: {model}\n  api_base: {running.api}\n  api_key_name: sideplug\n"
        for who, model in running.models.items()
    ]
    (home / "extra-openai-models.yaml").write_text("".join(models))
    (home / "keys.json").write_text('{"sideplug": "none"}')
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    env["LLM_USER_PATH"] = str(home)

    def call(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [str(llm), *map(str, arguments)]
        return subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=300, check=False, stdin=subprocess.DEVNULL
        )

    return call


@pytest.mark.parametrize("how", [[], ["--no-stream"]], ids=["streamed", "whole"])
@pytest.mark.parametrize("who", WHO)
def test_llm(running: Running, asked: Any, who: str, how: list[str]) -> None:
    done = asked("prompt", "-m", who, *how, "-o", "max_tokens", TOKENS, "-o", "temperature", 0, QUESTION)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == running.want[who].strip()


def test_llm_goes_on_and_hears_of_errors(running: Running, asked: Any) -> None:
    """A second turn with the first before it, what it counted, and a sentence for what can't be."""
    assert asked("prompt", "-m", "anna", "-o", "max_tokens", 4, "hi").returncode == 0
    further = asked("prompt", "-c", "-o", "max_tokens", 4, "and then?")
    assert further.returncode == 0, further.stderr
    first, second = json.loads(asked("logs", "--json", "-n", 2).stdout)
    assert first["model"] == second["model"] == "anna"
    assert second["input_tokens"] > first["input_tokens"] > 0
    assert 0 < first["output_tokens"] <= 4
    wrong = asked("prompt", "-m", "anna", "-o", "frequency_penalty", 1, "hi")
    assert wrong.returncode != 0
    assert "frequency_penalty is not supported: leave it out, or give 0" in wrong.stderr


def curl(running: Running, path: str, *options: str, **body: Any) -> str:
    command = ["curl", "--silent", "--noproxy", "*", "--no-buffer", *options, running.api + path]
    if body:
        command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
@pytest.mark.parametrize("who", WHO)
def test_curl(running: Running, who: str) -> None:
    names = [model["id"] for model in json.loads(curl(running, "/models"))["data"]]
    assert names == list(running.models.values())
    body = {"model": running.models[who], "messages": [{"role": "user", "content": QUESTION}], "max_tokens": TOKENS}
    whole = json.loads(curl(running, "/chat/completions", **body))
    assert whole["choices"][0]["message"]["content"] == running.want[who]
    *events, done, end = curl(running, "/chat/completions", **body, stream=True).split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content", "") for delta in deltas) == running.want[who]
    status = curl(running, "/chat/completions", "--write-out", "%{http_code}", **{**body, "model": "nobody"})
    assert status.endswith("404")


@pytest.mark.parametrize("who", WHO)
def test_openai_s_responses_and_anthropic(running: Running, who: str) -> None:
    """The newer APIs, streamed and not: the same text."""
    said: Any = [{"role": "user", "content": QUESTION}]
    with openai.OpenAI(base_url=running.api, api_key="none", max_retries=0) as client:
        answer = client.responses.create(model=running.models[who], input=said, max_output_tokens=TOKENS)
        assert answer.output_text == running.want[who]
    with anthropic.Anthropic(base_url=running.api.removesuffix("/v1"), api_key="none", max_retries=0) as client:
        ask: Any = {"model": running.models[who], "max_tokens": TOKENS, "messages": said}
        whole = client.messages.create(**ask).content[0]
        assert whole.type == "text"
        assert whole.text == running.want[who]
        with client.messages.stream(**ask) as stream:
            assert "".join(stream.text_stream) == running.want[who]


@pytest.mark.parametrize("who", WHO)
def test_openai(running: Running, who: str) -> None:
    with openai.OpenAI(base_url=running.api, api_key="none", max_retries=0) as client:
        ask: Any = {
            "model": running.models[who],
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": TOKENS,
        }
        whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
        assert whole.choices[0].message.content == running.want[who]
        assert whole.choices[0].logprobs is not None
        tokens = [entry.token for entry in whole.choices[0].logprobs.content or []]
        assert "".join(tokens).strip() == running.want[who].strip()
        with client.chat.completions.stream(**ask) as stream:
            told = [event.delta for event in stream if event.type == "content.delta"]
            assert "".join(told) == running.want[who]
            assert stream.current_completion_snapshot.choices[0].message.content == running.want[who]
