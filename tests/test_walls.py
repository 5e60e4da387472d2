"""The rooms' walls: who may import whom, no circles, nothing pickled, and a device without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sideplug

ROOT = Path(sideplug.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
DEVICE = {"device", "plugins", "contract", "paths", "sockets"}
TRAINING = {"training", "readers", "device", "plugins", "contract", "paths", "picture"}
MAY_IMPORT = {
    "contract": {"contract"},
    "plugins": {"plugins", "contract", "paths"},
    "readers": {"readers", "contract"},
    "device": DEVICE,
    "training": TRAINING,
    "cloud": {"cloud", "contract", "paths", "sockets", "wheel"},
    "memory": {"memory", "plugins", "contract", "paths", "picture", "wheel"},
    "web": {"web", "memory", "contract", "paths"},
    # Modules of no room, which several rooms import:
    "paths": {"contract"},
    "picture": {"contract", "paths"},
    "sockets": {"contract"},
    "terminal": {"contract"},
    "wheel": {"contract"},
    # Rooms to come:
    "trunk": {"trunk"} | TRAINING,
    "federate": {"federate", "training", "trunk", "readers", "device", "plugins", "contract", "paths"},
    "pool": {"pool", "cloud", "contract", "paths", "sockets"},
}
ALSO = {"cloud/trunks.py": {"plugins"}}  # the one module of the cloud that runs parts: public ones
ANY = {"cli", "bench", "api"}  # these may import every room
TO_COME = {"trunk", "federate", "pool"}


def module_of(file: Path, root: Path) -> str:
    """The module's name: root/device/link.py is sideplug.device.link, a package's __init__ the package."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(["sideplug", *(parts[:-1] if parts[-1] == "__init__" else parts)])


def imports(file: Path) -> set[str]:
    """All names that a file imports, wherever in it: "a.b" of `import a.b` and of `from a import b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def breaches(root: Path) -> list[str]:
    """What breaks through a wall in the package at `root`, a line each."""
    lines = []
    for file in sorted(root.rglob("*.py")):
        room = file.relative_to(root).parts[0].removesuffix(".py")
        if room not in MAY_IMPORT:
            continue
        for name in sorted(imports(file)):
            parts = name.split(".")
            allowed = MAY_IMPORT[room] | {"__version__"} | ALSO.get(str(file.relative_to(root)), set())
            if parts[0] == "sideplug" and len(parts) > 1 and parts[1] not in allowed:
                lines.append(f"{file.relative_to(root)} imports {name}")
    return lines


def graph(root: Path) -> dict[str, set[str]]:
    """Of each module the modules that it names in its imports, for type checkers' eyes or in a function too.

    `from a import b` names a.b where that is a module, else a. A module's own packages run before it, but what it does
    not name it does not need; and `__version__` is all that the package itself gives to its modules.
    """
    files = {module_of(file, root): file for file in root.rglob("*.py")}
    edges: dict[str, set[str]] = {}
    for module, file in files.items():
        named = {name if name in files else name.rpartition(".")[0] for name in imports(file)}
        edges[module] = {name for name in named if name in files and name not in (module, "sideplug")}
    return edges


def circles(edges: dict[str, set[str]]) -> Iterator[list[str]]:
    """A circle of modules for each edge that closes one."""
    done: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> Iterator[list[str]]:
        path.append(module)
        for name in sorted(edges[module]):
            if name in path:
                yield [*path[path.index(name) :], name]
            elif name not in done:
                yield from visit(name)
        done.add(path.pop())

    for module in sorted(edges):
        if module not in done:
            yield from visit(module)


def test_walls() -> None:
    assert breaches(ROOT) == []


def test_every_room_has_its_wall() -> None:
    rooms = {file.relative_to(ROOT).parts[0].removesuffix(".py") for file in FILES} - {"__init__", "__main__"}
    assert rooms <= set(MAY_IMPORT) | ANY
    assert set(MAY_IMPORT) - TO_COME <= rooms


def test_no_circles() -> None:
    assert [" → ".join(circle) for circle in circles(graph(ROOT))] == []


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"__init__.py": "", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("device/link.py", "from sideplug import cloud", "sideplug.cloud"),
        ("device/link.py", "import sideplug.cloud", "sideplug.cloud"),
        ("device/link.py", "import sideplug.cloud.engine as e", "sideplug.cloud.engine"),
        ("device/gateway/page/x.py", "from sideplug.cloud.engine import Engine", "sideplug.cloud.engine.Engine"),
        ("cloud/model/ort/graph.py", "def f():\n    from sideplug.device import link", "sideplug.device.link"),
        (
            "contract/wire.py",
            "if typing.TYPE_CHECKING:\n    from sideplug import paths",
            "sideplug.paths",
        ),
        ("plugins/__init__.py", "try:\n    from sideplug.training import fit\nexcept ImportError: ...", "training.fit"),
        ("readers/x.py", "from sideplug.cli.common import option", "sideplug.cli.common.option"),
        ("training/x.py", "from sideplug.bench import text", "sideplug.bench.text"),
        ("memory/x.py", "from sideplug.device import client", "sideplug.device.client"),
        ("paths.py", "from sideplug.device import address", "sideplug.device.address"),
        ("device/x.py", "from sideplug import Session", "sideplug.Session"),
        ("pool/x.py", "from sideplug import device", "sideplug.device"),
    ],
)
def test_a_breach_is_found(tmp_path: Path, name: str, text: str, found: str) -> None:
    (line,) = breaches(write(tmp_path, {name: text}))
    assert line.startswith(f"{name} imports ")
    assert line.endswith(found)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("device/x.py", "from sideplug import __version__, paths, sockets\nimport numpy, sideplug.plugins.base"),
        ("cli/x.py", "from sideplug import bench, cloud, device, training"),
        ("cloud/model/x.py", "from sideplug.cloud import engine\nfrom sideplug.contract.wire import encode"),
        ("trunk/x.py", "from sideplug import readers, training, trunk"),
    ],
)
def test_a_door_is_none(tmp_path: Path, name: str, text: str) -> None:
    assert breaches(write(tmp_path, {name: text})) == []


def test_relative_imports_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="imports are absolute"):
        breaches(write(tmp_path, {"device/x.py": "from ..cloud import engine"}))


@pytest.mark.parametrize(
    "back",
    [
        "from sideplug.device import a",
        "import sideplug.device.a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sideplug.device.a import A",
        "def f():\n    from sideplug.device.a import A",
    ],
)
def test_a_circle_is_found(tmp_path: Path, back: str) -> None:
    files = {
        "device/__init__.py": "from sideplug.device.a import A",
        "device/a.py": "from sideplug.contract import b\nfrom sideplug import __version__",
        "contract/b.py": "import sideplug.contract.c",
    }
    assert list(circles(graph(write(tmp_path, {**files, "contract/c.py": ""})))) == []
    (circle,) = circles(graph(write(tmp_path, {**files, "contract/c.py": back})))
    assert sorted(set(circle)) == ["sideplug.contract.b", "sideplug.contract.c", "sideplug.device.a"]
    assert circle[0] == circle[-1]


def test_a_package_that_its_own_part_needs_is_a_circle(tmp_path: Path) -> None:
    files = {"plugins/__init__.py": "from sideplug.plugins.a import A"}
    files |= {"plugins/a.py": "from sideplug.plugins import B"}
    (circle,) = circles(graph(write(tmp_path, files)))
    assert circle == ["sideplug.plugins", "sideplug.plugins.a", "sideplug.plugins"]


def test_no_pickle_anywhere() -> None:
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for file in FILES:
        assert not {name.split(".")[0] for name in imports(file)} & forbidden, file
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "torch.save", "np.save", "eval", "exec"), f"{file}: {called}"
                if called == "np.load":
                    assert not any(keyword.arg == "allow_pickle" for keyword in node.keywords), file


HEAVY = ("torch", "transformers", "tokenizers", "jinja2", "huggingface_hub", "gguf", "scipy", "pandas", "requests")
IMPORT_ALL = """
import importlib, sys
for name in NAMES:
    importlib.import_module(name)
print([name for name in sys.modules if name.split('.')[0] in HEAVY or name.startswith('sideplug.cloud')])
"""


def test_the_device_imports_nothing_heavy() -> None:
    """Every module of its rooms, and the command line until a command is asked for."""
    rooms = ("contract", "plugins", "readers", "device", "training")
    names = [module_of(file, ROOT) for file in FILES if file.relative_to(ROOT).parts[0] in rooms]
    assert len(names) > 50
    code = f"HEAVY = {HEAVY}\nNAMES = {[*names, 'sideplug', 'sideplug.cli', 'sideplug.cli.talk', 'sideplug.cli.train']}"
    done = subprocess.run([sys.executable, "-c", code + IMPORT_ALL], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_cloud_imports_torch_only_to_run_a_model() -> None:
    """So that a bad name or a taken port is said at once, and another engine can do without."""
    code = "import sys, sideplug.cloud.server, sideplug.cloud.store; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_bare_install_declares_nothing_heavy() -> None:
    import tomllib

    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    assert not [d for d in project["dependencies"] if d.startswith(HEAVY)]
