"""The public API: what it exports is pinned, its docstrings run, and a notebook of ten lines works."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import sideplug
from sideplug.contract.errors import DataError, InputError
from tests.conftest import Cloud, a_plugin

EXPORTED = [
    "Address",
    "Client",
    "DecodeOptions",
    "Example",
    "Gate",
    "Grammar",
    "Listening",
    "Piece",
    "Plugin",
    "Prompt",
    "Reply",
    "Sampling",
    "Session",
    "SideplugError",
    "Step",
    "Tap",
    "TrainedKind",
    "Usage",
    "__version__",
    "connect",
    "forget",
    "listen",
    "load",
    "read",
    "register",
    "remember",
    "train",
]
NOTEBOOK = """
import sideplug
with sideplug.listen(cloud, layers=[0, 1, 2]) as listening:
    states = [step.states for step in listening.generate("Is it far to the mill?", max_tokens=4)]
plugin = sideplug.train(["The mill stands by the river.", "The river is wide."] * 3, out, cloud, epochs=1, quiet=True)
with sideplug.connect(cloud) as base, sideplug.connect(cloud, plugin) as mine:
    for session in (base, mine):
        print(session.generate("Is it far to the mill?", max_tokens=4).text)
"""


def test_what_is_exported_is_pinned() -> None:
    assert sorted(sideplug.__all__) == EXPORTED
    for name in EXPORTED:
        assert getattr(sideplug, name) is not None
    assert dir(sideplug) == EXPORTED
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        sideplug.nothing  # noqa: B018
    assert (Path(sideplug.__file__).parent / "py.typed").is_file()


def test_importing_it_does_no_work() -> None:
    code = "import sys, sideplug; print([name for name in sys.modules if name.startswith(('sideplug.', 'numpy'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['sideplug.contract', 'sideplug.contract.version']\n"


@pytest.fixture
def names(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the examples of docstrings may use."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIDEPLUG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "notes.txt").write_text("The mill stands by the river.")
    return {"sideplug": sideplug, "cloud": cloud.url, "notes": tmp_path / "notes.txt"}


@pytest.mark.parametrize("name", [name for name in EXPORTED if name != "__version__"])
def test_docstrings_run(name: str, names: dict[str, object], cloud: Cloud) -> None:
    exported = getattr(sideplug, name)
    assert exported.__doc__, name
    if name == "load":
        a_plugin(cloud.base.fingerprint).save(Path("my-plugin"))
    runner, finder = doctest.DocTestRunner(), doctest.DocTestFinder()
    for test in finder.find(exported, name, globs=names, extraglobs=names):
        result = runner.run(test)
        assert result.failed == 0, test.name


def test_public_methods_have_docstrings() -> None:
    for name in EXPORTED:
        exported = getattr(sideplug, name)
        for attribute, value in vars(exported).items() if inspect.isclass(exported) else ():
            method = inspect.isfunction(value) and value.__name__ == attribute  # a field's default is none
            public = not attribute.startswith("_") and (method or isinstance(value, property))
            assert not public or value.__doc__, f"{name}.{attribute}"


def test_a_notebook_of_ten_lines(names: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(NOTEBOOK.strip().splitlines()) <= 10
    exec(NOTEBOOK, names | {"out": tmp_path / "p"})
    assert len(capsys.readouterr().out.splitlines()) >= 2
    with pytest.raises(InputError, match="already holds a plugin"):
        sideplug.train(["a b", "c d"], tmp_path / "p", str(names["cloud"]))


def test_items_that_are_no_examples(cloud: Cloud, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="item 2 must be a text, a \\(question, answer\\) pair or an Example, got 5"):
        sideplug.train(["a", 5], tmp_path, cloud.url)  # type: ignore[list-item]
