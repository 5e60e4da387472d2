"""The rooms' doors: who may import whom, nothing pickled, and a device without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sideplug

ROOT = Path(sideplug.__file__).parent
MAY_IMPORT = {
    "contract": {"contract"},
    "cloud": {"cloud", "contract", "paths", "listen"},
    "device": {"device", "contract", "paths", "listen"},
    "training": {"training", "device", "contract", "paths"},
    "bench": {"bench", "training", "device", "cloud", "contract", "paths", "terminal", "__version__"},
}
FILES = sorted(ROOT.rglob("*.py"))


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_doors(room: str) -> None:
    files = [file for file in FILES if file.is_relative_to(ROOT / room)]
    assert files
    for file in files:
        for name in imports(file):
            parts = name.split(".")
            if parts[0] == "sideplug" and len(parts) > 2:
                assert parts[1] in MAY_IMPORT[room], f"{file} imports {name}"


def test_only_its_command_imports_the_benchmark() -> None:
    command = ROOT / "cli" / "bench.py"
    for file in FILES:
        if not file.is_relative_to(ROOT / "bench") and file != command:
            assert not [name for name in imports(file) if name.startswith("sideplug.bench")], file
    at_once = [node for node in ast.parse(command.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [line for node in at_once if "sideplug.bench" in (line := ast.unparse(node))], "not before it is run"


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
DEVICE = """
import sys
import sideplug.cli
import sideplug.device.link, sideplug.device.plugin, sideplug.device.runtime
import sideplug.training.data, sideplug.training.tape, sideplug.training.trainer, sideplug.training.head
print([name for name in sys.modules if name.split('.')[0] in HEAVY or name.startswith('sideplug.cloud')])
"""


def test_the_device_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"HEAVY = {HEAVY}\n{DEVICE}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_cloud_imports_torch_only_to_run_a_model() -> None:
    """So that a bad name or a taken port is said at once, and another engine can do without."""
    code = "import sys, sideplug.cloud.server, sideplug.cloud.store; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_bare_install_declares_nothing_heavy() -> None:
    import tomllib

    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    assert not [d for d in project["dependencies"] if d.startswith(HEAVY)]
