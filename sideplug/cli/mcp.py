"""sideplug mcp: a plugin's memory as tools of the Model Context Protocol. Test: pytest tests/test_cli_mcp.py"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sideplug.cli.common import FOLDER, command, option
from sideplug.contract.errors import InputError
from sideplug.contract.version import __version__

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

T = TypeVar("T")
INSTRUCTIONS = (
    "What a person has told their plugin, on their own device. Recall before you ask them about themselves; what is "
    "not said to be certain was never told. Remember what they ask you to remember, in their own words."
)


@command("mcp", "sideplug mcp --plugin my-plugin")
@option(
    "--plugin",
    "folder",
    type=FOLDER,
    env=True,
    required=True,
    metavar="DIR",
    help="The plugin; made where there is none.",
)
@option("--read-only", is_flag=True, help="Offer recall and audit alone: nothing is remembered or forgotten.")
def mcp(folder: Path, read_only: bool) -> None:
    """Offer a plugin's memory to an agent: recall, remember, forget and audit, over standard input and output.

    An agent's configuration names this command. What is recalled goes to the agent, and on to the model that it uses.
    """
    if not importlib.util.find_spec("mcp"):
        raise InputError("sideplug mcp needs the package mcp: pip install 'sideplug[mcp]'")
    server(folder, read_only).run("stdio")


def server(folder: Path, read_only: bool) -> MCPServer:
    """The server of a plugin's folder. Raises PluginError where it is damaged or sealed."""
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError

    from sideplug.cli.memory import forgotten
    from sideplug.contract.errors import SideplugError
    from sideplug.device import audit as audits
    from sideplug.memory.desk import Desk
    from sideplug.plugins import Plugin
    from sideplug.plugins.file import is_plugin

    desk = Desk(forget=forgotten)
    offered = MCPServer("sideplug", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING")

    def told(work: Callable[[], T]) -> T:
        try:
            return work()
        except SideplugError as error:
            raise ToolError(str(error)) from error

    def the_plugin() -> Plugin | None:
        return Plugin.load(folder) if is_plugin(folder) else None

    the_plugin()  # one that can't be read is said at once

    @offered.tool()
    def recall(question: str) -> list[dict[str, Any]]:
        """What the person told that may answer a question, the most certain first: text, its entry's number, and how
        certain it is (0 to 1). `said` is true where that is certain enough to be taken for the answer."""
        return told(lambda: desk.search(plugin, question) if (plugin := the_plugin()) else [])

    @offered.tool()
    def audit(transcript: str) -> list[str]:
        """What left this device and what came, in sentences, from a transcript: `sideplug … --transcript FILE`."""
        return told(lambda: list(audits.report(audits.read(Path(transcript)), the_plugin()).lines()))

    if read_only:
        return offered

    @offered.tool()
    def remember(reply: str, question: str = "") -> dict[str, Any]:
        """Remember something for the person: a question with its reply, word for word, or a note alone. It is known at
        once; a newer reply to the same question replaces the older."""
        return told(lambda: desk.tell(folder, [(question, reply)]))

    @offered.tool()
    def forget(number: int) -> dict[str, Any]:
        """Forget the entry with this number, on the person's wish. `left` says what still holds it, if anything."""
        return told(lambda: desk.forget(folder, number))

    return offered
