"""The recipes of docs/FLEET.md for reverse proxies, run as they stand there: TLS, a path, keys, and the same text.

Run: pytest -m slow tests/slow/test_proxy.py
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from sideplug.cloud.keys import Keys
from sideplug.contract.errors import SideplugError, Unauthorized
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.device.address import Address
from sideplug.device.client import Client
from tests.conftest import Cloud, a_cloud, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
RECIPES = (Path(__file__).parents[2] / "docs" / "FLEET.md").read_text("utf-8")
NGINX = "daemon off; pid {0}/pid; error_log {0}/error.log; events {{}} http {{ access_log off; {1} }}"


def recipe(name: str, port: int, cloud: Cloud, folder: Path) -> str:
    """A recipe with this machine's port, name and certificate."""
    text = re.search(rf"```{name}\n(.*?)```", RECIPES, re.DOTALL)
    assert text
    changes = {
        "127.0.0.1:8765": cloud.url.removeprefix("ws://"),
        "/etc/ssl/llm": str(folder / "llm"),
        "listen 443": f"listen 127.0.0.1:{port}",
    }
    changed = text[1]
    for old, new in changes.items():
        changed = changed.replace(old, new)
    return changed.replace("llm.example.org", f"https://localhost:{port}" if name == "caddy" else "localhost")


def nginx(port: int, cloud: Cloud, folder: Path) -> list[str]:
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder, recipe("nginx", port, cloud, folder)), "utf-8")
    return ["nginx", "-c", str(config), "-e", str(folder / "error.log")]


def caddy(port: int, cloud: Cloud, folder: Path) -> list[str]:
    config = folder / "Caddyfile"
    config.write_text("{\n admin off\n auto_https off\n}\n" + recipe("caddy", port, cloud, folder), "utf-8")
    return ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"]


@contextmanager
def running(command: list[str], ready: Callable[[], object]) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            for _ in range(100):
                time.sleep(0.1)
                try:
                    ready()
                    break
                except Unauthorized:
                    break
                except SideplugError:
                    assert process.poll() is None, process.stderr and process.stderr.read()
            yield
        finally:
            process.terminate()


@pytest.mark.parametrize("proxy", [nginx, caddy], ids=["nginx", "caddy"])
def test_a_cloud_behind_a_proxy(proxy: Callable[[int, Cloud, Path], list[str]], tiny: Path, tmp_path: Path) -> None:
    if shutil.which(proxy.__name__) is None:
        pytest.skip(f"{proxy.__name__} is not installed")
    authority, port = trustme.CA(), free_port()
    issued = authority.issue_cert("localhost")
    (tmp_path / "llm.pem").write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    (tmp_path / "llm.key").write_bytes(issued.private_key_pem.bytes())
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    keys = Keys(tmp_path / "keys.json")
    key = keys.add("ada")
    with a_cloud(tiny, keys=keys) as cloud:
        far = Address(f"wss://localhost:{port}/cloud", tmp_path / "ca.pem", key)
        with running(proxy(port, cloud, tmp_path), lambda: Client(far).model()):
            near = Address(cloud.url, key=key)
            said = []
            for address in (far, near):
                assert Client(address).model().name == cloud.base.name
                with Client(address).connect() as session:
                    said.append(session.generate(Prompt(text="the miller"), 24, Sampling(0.8, seed=1)).text)
            assert said[0] == said[1]
            with pytest.raises(Unauthorized):
                Client(Address(far.url, far.ca, "sp-wrong")).connect()
