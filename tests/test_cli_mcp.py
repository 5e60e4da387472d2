"""sideplug mcp, by the protocol's own client, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cloud, Run, a_plugin
from tests.test_cli import sentence

mcp = pytest.importorskip("mcp", reason="pip install 'sideplug[mcp]'")
Call = tuple[str, dict[str, Any]]


def asked(folder: Path, calls: Sequence[Call], *options: str) -> tuple[list[str], list[Any]]:
    """(the tools' names, what each call gave: a value, or the sentence of an error)."""

    async def talk() -> tuple[list[str], list[Any]]:
        arguments = ["-m", "sideplug", "mcp", "--plugin", str(folder), *options]
        server = mcp.StdioServerParameters(command=sys.executable, args=arguments, env={"SIDEPLUG_NO_ENCODER": "1"})
        async with mcp.stdio_client(server) as streams, mcp.ClientSession(*streams) as session:
            await session.initialize()
            tools = [tool.name for tool in (await session.list_tools()).tools]
            results = [await session.call_tool(name, given) for name, given in calls]
        return tools, [_value(result) for result in results]

    return asyncio.run(talk())


def _value(result: Any) -> Any:
    texts = [part.text for part in result.content]
    if result.is_error:
        return " ".join(texts)
    structured = result.structured_content
    return structured.get("result", structured) if structured is not None else [json.loads(text) for text in texts]


def test_what_an_agent_does(tmp_path: Path) -> None:
    """It remembers in a plugin that is not there yet, recalls, and forgets; another session knows the same."""
    folder = tmp_path / "me"
    tools, (nothing, told, note, found) = asked(
        folder,
        [
            ("recall", {"question": "Where is the boat?"}),
            ("remember", {"question": "Where is the boat?", "reply": "In Hamar."}),
            ("remember", {"reply": "The bees are at Anna's."}),
            ("recall", {"question": "where is the boat"}),
        ],
    )
    assert tools == ["recall", "audit", "remember", "forget"]
    assert nothing == []
    assert (told["numbers"], note["numbers"]) == ([1], [2])
    assert (found[0]["text"], found[0]["number"], found[0]["said"]) == ("In Hamar.", 1, True)
    _, (gone, found, again) = asked(
        folder,
        [("forget", {"number": 1}), ("recall", {"question": "where is the boat"}), ("forget", {"number": 1})],
    )
    assert gone["forgotten"]["reply"] == "In Hamar."
    assert not any(each["said"] for each in found)
    assert "the memory has no entry 1" in again
    assert "Traceback" not in again


def test_what_left_is_told(run: Run, cloud: Cloud, tmp_path: Path) -> None:
    a_plugin(cloud.base.fingerprint).save(tmp_path / "me")
    how = ("--plugin", tmp_path / "me", "--cloud", cloud.url, "--max-tokens", "4")
    assert run("generate", "Is it far?", *how, "--transcript", tmp_path / "t.sp").returncode == 0
    _, (lines,) = asked(tmp_path / "me", [("audit", {"transcript": str(tmp_path / "t.sp")})])
    assert lines == run("audit", tmp_path / "t.sp", "--plugin", tmp_path / "me").stdout.splitlines()


def test_read_only_and_what_can_t_be(run: Run, tmp_path: Path) -> None:
    tools, (wrong, empty) = asked(
        tmp_path / "me", [("audit", {"transcript": "/nowhere.sp"}), ("recall", {"question": " "})], "--read-only"
    )
    assert tools == ["recall", "audit"]
    assert "nowhere.sp" in wrong
    assert empty == []
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "plugin.json").write_text("[]")
    sentence(run("mcp", "--plugin", tmp_path / "bad"), 2, "plugin.json")
