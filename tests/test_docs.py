"""Docs that can't lie: tables, references and the API are made from the code, and what docs name exists.

`make docs` (python -m tests.test_docs) writes docs/CLI.md, docs/API.md and the marked tables of docs/WIRE.md and
docs/FLEET.md anew; the tests say whether they are current.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

import sideplug
from sideplug.cli import group
from sideplug.cli.common import SECTIONS
from sideplug.cloud.config import RAY, settings
from sideplug.contract import correction, frames, wire
from sideplug.contract.capabilities import CAPABILITIES
from tests.house import file_tree, rooms_table

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
SOURCES = sorted((ROOT / "sideplug").rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
HISTORY = {"LOG.md", "CHANGELOG.md"}  # what these tell has the words of its day
OLD_WORDS = (
    r"--ahead\b|--lookahead\b|--general\b|--general-weight\b|sideplug learn\b|taps\.connect|device\.taps|TAPS\.md|"
    r"foresight|foretell|run-ahead|\bshelf\b|\bvault\b|\bteacher\b|`kept`|\bkept_texts\b"
)
OTHER_VARIABLES = {
    "SIDEPLUG_CACHE": "the folder of what can be made again: models, prepared weights, the retain set's tape",
    "SIDEPLUG_KEYS": "the file of keys that a cloud knows",
    "SIDEPLUG_LOCAL_KEY": "the file of the key for a cloud on this very machine",
    "SIDEPLUG_PASSPHRASE": "the passphrase of sealed plugins",
}
Commands = list[tuple[str, click.Command, click.Context]]  # (path, command, its context)


# The wire ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

SCALARS = (
    *("Word", "Name", "TapName", "Whole", "Position", "Ids", "Positions"),
    *("Fingerprint", "WantedBase", "Hash", "Tops"),
)
MAPS: tuple[type[frames.Map], ...] = (
    frames.Message,
    frames.GateSpec,
    frames.SamplingSpec,
    frames.ModelInfo,
    frames.SessionLimits,
    frames.Wanted,
    *(each.settings for each in CAPABILITIES.values()),
)
LIMITS = {
    "control map of a frame": f"{wire.MAX_CONTROL_BYTES >> 20} MiB",
    "payload of a frame": f"{wire.MAX_PAYLOAD_BYTES >> 20} MiB",
    "tensors of a frame; dimensions of each": f"{frames.MAX_TENSORS}; {wire.MAX_DIMS}",
    "parts of a plugin": frames.MAX_PARTS,
    "capabilities of a session": frames.MAX_CAPABILITIES,
    **{
        f"`{each.name}`: its settings, and each extension": f"{each.max_bytes:,} bytes"
        for each in CAPABILITIES.values()
    },
    "`window`: open ASKs behind which the cloud may decode": frames.MAX_WINDOW,
    "`head`": " or ".join(frames.HEADS),
    "`top`: alternatives of a token": frames.MAX_TOP,
    "`draft` of a PROMPT": f"{frames.MAX_FIRST_DRAFT} ids",
    "`draft` of an answered position": f"{frames.MAX_DRAFT} ids",
    "positions of an ASK or ANSWER": frames.MAX_ASKED,
    "pairs of a mixture": frames.MAX_MIXED,
    "any number of a corrected z": f"{correction.MAX_CORRECTED:.0e}",
    "`greedy_tokens` of a READ": frames.MAX_GREEDY_TOKENS,
    "ids of a ROWS": frames.ROWS_PER_FRAME,
}


def kinds_table() -> str:
    """The table of kinds in docs/WIRE.md, from the frames' dataclasses."""
    rows = ["| kind | from | control fields | tensors |", "|---|---|---|---|"]
    for kind, cls in frames.FRAMES.items():
        layout, hints = frames.layout(cls), typing.get_type_hints(cls, include_extras=True)
        has_default = {each.name for each in dataclasses.fields(cls) if each.default is not dataclasses.MISSING}
        has_default |= {each.name for each in dataclasses.fields(cls) if callable(each.default_factory)}
        control = [
            f"`{name}`{'?' * (name in has_default)} {shown(hints[name])}"
            for name in layout.names
            if name != "extensions"
        ]
        tensors = [f"`{name}`{'?' * (name in layout.optional)} ({rank})" for name, rank in layout.ranks.items()]
        sender = (cls.__doc__ or "").split(" →")[0].lower()
        rows.append(f"| {kind.value} {kind.name} | {sender} | {'; '.join(control)} | {'; '.join(tensors)} |")
    return "\n".join(rows) + "\n"


def types_table() -> str:
    """The table of the types that these fields have."""
    rows = ["| type | values |", "|---|---|"]
    rows += [f"| {name} | {shown(getattr(frames, name), named=False)} |" for name in SCALARS]
    for cls in MAPS:
        fields = msgspec.structs.fields(cls)
        inner = [f"`{each.name}`{'?' * (not each.required)} {shown(each.type)}" for each in fields]
        rows.append(f"| {cls.__name__} | {'; '.join(inner)} |")
    return "\n".join(rows) + "\n"


def shown(hint: Any, named: bool = True) -> str:
    """A field's type with its bounds."""
    if named:
        name = next((name for name in SCALARS if getattr(frames, name) == hint), "")
        if name:
            return name
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated or hasattr(hint, "__metadata__"):
        return shown(hint.__origin__) + "".join(bounds(hint.__origin__, note) for note in hint.__metadata__)
    if origin in (typing.Union, types.UnionType):
        return shown(next(each for each in arguments if each is not type(None)))
    if origin in (list, tuple):
        return f"[{', '.join(map(shown, arguments))}]"
    if origin is dict:
        return f"{{{shown(arguments[0])}: {shown(arguments[1])}}}"
    names = {int: "integer", str: "text", float: "number", bool: "true or false", msgspec.Raw: "a map of its schema"}
    return names.get(hint) or str(hint.__name__)


def bounds(of: Any, meta: msgspec.Meta) -> str:
    """What a Meta says of a value."""
    digits = re.search(r"\{(\d+)\}", meta.pattern or "")
    if digits is not None:
        none = '"" or ' if "?" in (meta.pattern or "") else ""
        return f", {none}{digits[1]} hexadecimal digits"
    printable = {None: "", frames.WORD: ", printable ASCII"}.get(meta.pattern, ", printable")
    if meta.max_length is not None:
        least = f"{meta.min_length} to " if meta.min_length else "at most "
        return f", {least}{meta.max_length:,}" + (" characters" if of is str else "") + printable
    if meta.gt is not None:
        return f", above {meta.gt:,} to {meta.le:,}"
    most = meta.le if meta.le is not None else (meta.lt or 0) - 1
    return f", {meta.ge:,} to {most:,}" if meta.ge is not None else ""


def limits_table() -> str:
    """The table of limits that the cloud checks beside the types."""
    rows = ["| what | at most |", "|---|---|", *(f"| {what} | {most} |" for what, most in LIMITS.items())]
    return "\n".join(rows) + "\n"


# The commands and the API ─────────────────────────────────────────────────────────────────────────────────────────────


def all_commands() -> Commands:
    """Every command and group, in the order of the help."""
    found: Commands = []

    def add(command: click.Command, path: str, parent: click.Context | None) -> None:
        context = click.Context(command, info_name=path.rsplit(" ", 1)[-1], parent=parent, max_content_width=100)
        found.append((path, command, context))
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                add(inner, f"{path} {name}", context)

    add(group, "sideplug", None)
    return found


def variables() -> dict[str, dict[str, str]]:
    """The variables that are options: of each, the option that it stands for by command."""
    found: dict[str, dict[str, str]] = {}
    for path, command, _ in all_commands():
        for parameter in command.params:
            if isinstance(parameter.envvar, str):
                found.setdefault(parameter.envvar, {})[path.removeprefix("sideplug ")] = parameter.opts[0]
    return found


def cli_page() -> str:
    """docs/CLI.md, from the commands themselves."""
    parts = ["# The commands\n\nMade from `--help` by `make docs`; a test checks it.\n"]
    for path, command, context in all_commands():
        parts.append(f"\n## {path}\n\n```\n{command.get_help(context)}\n```\n")
    parts.append(
        "\n## Variables\n\nA variable may stand for an option that many commands share. An option on the command line "
        "wins.\n\n"
    )
    parts.append("| variable | instead of |\n|---|---|\n")
    rows = dict(OTHER_VARIABLES)
    for name, options in variables().items():
        (owner, option), *more = options.items()
        rows[name] = f"`{option}`" if more else f"`{owner} {option}`"
    parts += [f"| `{name}` | {rows[name]} |\n" for name in sorted(rows)]
    return "".join(parts)


def fleet_arguments() -> str:
    """The table of docs/FLEET.md, from ServeConfig's fields."""
    rows = ["| argument | default | values | |", "|---|---|---|---|"]
    for about in settings(RAY):
        default = str(about.default).lower() if about.kind is bool else f"{about.default}"
        rows.append(f"| `{about.name}` | {default and f'`{default}`'} | {about.range} | {about.help} |")
    return "\n".join(rows) + "\n"


def api_page() -> str:
    """docs/API.md, from the docstrings of the public names."""
    public = [(name, getattr(sideplug, name)) for name in sideplug.__all__ if name != "__version__"]
    parts = [
        "# The Python API\n\n`import sideplug` gives these names; anything else may change. The examples run as tests, "
        "with `cloud` the address of\na cloud and `sideplug` imported. Made from the docstrings by `make docs`; a test "
        "checks it.\n"
    ]
    for name, value in sorted(public, key=lambda each: (isinstance(each[1], type), each[0].lower())):
        parts.append(f"\n## sideplug.{name}\n\n")
        is_class = isinstance(value, type)
        signature = signature_of(value)
        if not is_class or signature != "()":
            parts.append(f"```python\n{'class ' * is_class}{name}{signature}\n```\n\n")
        parts.append(markdown(inspect.getdoc(value) or ""))
        if is_class:
            parts += [f"\n- {line}\n" if not n else f"- {line}\n" for n, line in enumerate(members(value))]
    return "".join(parts)


def members(cls: type) -> Iterator[str]:
    """A line for each public method and property of a class, bases of ours included."""
    bases = [base for base in cls.__mro__ if base.__module__.startswith("sideplug")]
    names = dict.fromkeys(name for base in bases for name in vars(base) if not name.startswith("_"))
    for name in names:
        value = inspect.getattr_static(cls, name)
        plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if isinstance(value, property):
            call = f".{name}"
        elif inspect.isfunction(plain) and name not in getattr(cls, "__dataclass_fields__", ()):
            dot = f"{cls.__name__}." if plain is not value else "."
            call = f"{dot}{name}{signature_of(plain, skip=not isinstance(value, staticmethod))}"
        else:
            continue
        yield f"`{call}`: {summary(bases, name)}"


def summary(bases: list[type], name: str) -> str:
    """The first docstring of this member that is not only a reference to a base's, on one line, without examples."""
    docs = [inspect.getdoc(vars(base)[name]) or "" for base in bases if name in vars(base)]
    doc = next((each for each in docs if each and not re.match(r"See \w+\.", each)), docs[0])
    return " ".join(doc.split(">>>")[0].split())


def signature_of(value: Any, skip: bool = False) -> str:
    """The signature with plain annotations; defaults that are objects by their class. skip: without self or cls."""
    try:
        signature = inspect.signature(value)
    except ValueError:
        return "()"
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    found = []
    star = False
    for each in list(signature.parameters.values())[int(skip) :]:
        if each.kind is each.VAR_POSITIONAL:
            star = True
        elif each.kind is each.KEYWORD_ONLY and not star:
            found.append("*")
            star = True
        text = stars.get(each.kind, "") + each.name
        if each.annotation is not each.empty:
            text += f": {annotation(each.annotation)}"
        if each.default is not each.empty:
            text += f" = {default_of(each.default)}"
        found.append(text)
    result = signature.return_annotation
    returns = (
        "" if result in (signature.empty, None, "None") or isinstance(value, type) else f" -> {annotation(result)}"
    )
    return f"({', '.join(found)}){returns}"


def annotation(value: Any) -> str:
    """An annotation as it is written."""
    return value if isinstance(value, str) else str(getattr(value, "__name__", value))


def default_of(value: Any) -> str:
    """A default as it is written, without what would differ between machines."""
    if isinstance(value, str | int | float | bool | tuple | None):
        return repr(value)
    return (
        "…"
        if inspect.isfunction(value) or type(value).__name__ == "_HAS_DEFAULT_FACTORY_CLASS"
        else f"{type(value).__name__}()"
    )


def markdown(doc: str) -> str:
    """A docstring with its examples in code blocks."""
    lines: list[str] = []
    inside = False
    for line in doc.splitlines():
        if line.startswith(">>>") and not inside:
            lines.append("```python")
            inside = True
        elif inside and not line.strip():
            lines.append("```")
            inside = False
        lines.append(line)
    return "\n".join([*lines, "```"] if inside else lines) + "\n"


# What is made, and whether it is current ──────────────────────────────────────────────────────────────────────────────

TABLES = {
    "FLEET.md": {"arguments": fleet_arguments},
    "WIRE.md": {"kinds": kinds_table, "types": types_table, "limits": limits_table},
    "ARCHITECTURE.md": {"rooms": rooms_table, "files": file_tree},
}
MADE = ["CLI.md", "API.md", *TABLES]


def with_tables(name: str) -> str:
    """A page of docs/ with its tables made anew, each between two marks."""
    text = (DOCS / name).read_text()
    for table, make in TABLES[name].items():
        mark = f"<!-- {table}: made by make docs -->\n"
        start, rest = text.split(mark)
        text = f"{start}{mark}{make()}{rest[rest.index('<!-- end -->') :]}"
    return text


def made_page(name: str) -> str:
    """A page of docs/ that is made, or whose tables are."""
    return {"CLI.md": cli_page, "API.md": api_page}.get(name, lambda: with_tables(name))()


@pytest.mark.parametrize("name", MADE)
def test_a_made_page_is_current(name: str) -> None:
    assert (DOCS / name).read_text() == made_page(name), "run make docs"


def test_the_wires_prose_names_every_kind_and_the_version() -> None:
    text = (DOCS / "WIRE.md").read_text()
    prose = re.sub(r"<!-- \w+: made by make docs -->.*?<!-- end -->", "", text, flags=re.S)
    assert [kind.name for kind in frames.Kind if not re.search(rf"\b{kind.name}\b", prose)] == []
    assert wire.HEADER_BYTES == 20
    assert f"version, `{wire.VERSION:02x}`" in prose
    assert [name for name in CAPABILITIES if f"`{name}`" not in prose] == []
    assert {cls.kind for cls in frames.FRAMES.values()} == set(frames.Kind)


# What the docs name ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_variable_has_one_meaning_and_destroys_nothing() -> None:
    for name, options in variables().items():
        assert len(set(options.values())) == 1, name
    never = {"force", "resume", "seed", "data", "out", "update", "limit", "json", "transcript", "epochs", "gate", "raw"}
    assert not {f"SIDEPLUG_{name.upper()}" for name in never} & set(variables())
    assert {"SIDEPLUG_CLOUD", "SIDEPLUG_WINDOW", "SIDEPLUG_RETAIN", "SIDEPLUG_GATEWAY_PORT"} <= set(variables())


def test_the_help_has_its_sections() -> None:
    text = group.get_help(click.Context(group, info_name="sideplug"))
    shown = re.findall(r"^(For .*):$|^  ([a-z]+)  ", text, re.M)
    wanted = [(title, *commands) for title, commands in SECTIONS.items()]
    assert [title or name for title, name in shown] == [word for section in wanted for word in section]
    for _, command, _ in all_commands():
        first = (command.help or "").split("\n\n")[0]
        assert first, command.name


def shell_lines(text: str) -> Iterator[str]:
    """The lines of a page's code blocks, and what stands in backticks, that are calls of sideplug or make."""
    fenced = False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if fenced or line.startswith("    "):
            yield from re.findall(r"^ *(?:[A-Z_]+=\S+ )*((?:sideplug|make) .*)", line)
    yield from re.findall(r"`((?:sideplug|make) [^`]+)`", text)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in HISTORY], ids=lambda page: page.name)
def test_commands_that_a_page_shows_exist(page: Path) -> None:
    """Every `sideplug …` with its options, and every `make …`."""
    commands = {path.removeprefix("sideplug").strip(): command for path, command, _ in all_commands()}
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for line in shell_lines(page.read_text(encoding="utf-8")):
        program, *words = line.split("  #")[0].split(" # ")[0].split()
        names = [word for word in words[:2] if re.fullmatch(r"[a-z]+", word)]
        if program == "make":
            assert words[0] in targets, line
        elif names:
            path = " ".join(names) if " ".join(names) in commands else names[0]
            assert path in commands, line
            known = {option for each in commands[path].params for option in (*each.opts, *each.secondary_opts)}
            assert set(re.findall(r"(?<!\S)--[a-z][a-z-]*", " ".join(words))) <= known | {"--help"}, line


def test_readme_shows_the_commands() -> None:
    commands = re.findall(r"^ *sideplug ([a-z]+)", README, re.M)
    assert {"serve", "train", "chat"} <= set(commands)


def test_files_that_docs_name_exist() -> None:
    for file in PAGES:
        for name in re.findall(
            r"\]\(([^)#:]+)\)|`((?:sideplug|tests|docs|bench|examples)/[\w/.-]+)`", file.read_text()
        ):
            path = name[0] or name[1]
            assert (file.parent / path).exists() or (ROOT / path).exists() or (ROOT / f"{path}.py").exists(), (
                file,
                path,
            )


def test_tests_that_docstrings_name_exist() -> None:
    missing = []
    for source in SOURCES:
        for line in re.findall(r"^.*\b(?:Test|Run): pytest .*$", source.read_text(), re.M):
            missing += [
                (source.name, name) for name in re.findall(r"tests/[\w/.]+", line) if not (ROOT / name).exists()
            ]
    assert missing == []


def test_all_that_is_public_has_a_docstring() -> None:
    def bare(node: ast.AST, path: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and child.name[0] != "_":
                if not ast.get_docstring(child):
                    yield f"{path}.{child.name}"
                if isinstance(child, ast.ClassDef):
                    yield from bare(child, f"{path}.{child.name}")

    trees = {str(source.relative_to(ROOT)): ast.parse(source.read_text()) for source in SOURCES}
    assert [path for path, tree in trees.items() if tree.body and not ast.get_docstring(tree)] == []
    assert [name for path, tree in trees.items() for name in bare(tree, path)] == []


def test_old_words_are_gone() -> None:
    for page in PAGES:
        if page.name not in HISTORY:
            assert re.findall(OLD_WORDS, page.read_text()) == [], page.name


def test_help_runs_without_the_clouds_packages() -> None:
    absent = ("torch", "onnxruntime", "tokenizers", "ray")
    code = f"import sys; sys.modules |= dict.fromkeys({absent}); from sideplug.cli import main; main(sys.argv[1:])"
    for arguments in (["--help"], ["serve", "--help"]):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    for page in MADE:
        (DOCS / page).write_text(made_page(page))


TEST_LINE = re.compile(r"Test: pytest ((?:tests/[\w./]+ ?)+)")


def missing_tests(root: Path) -> list[str]:
    """Each "Test: pytest tests/…" line of a docstring in `root`/sideplug that names what is not there."""
    lines = []
    for file in sorted((root / "sideplug").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for found in TEST_LINE.finditer(" ".join((ast.get_docstring(node) or "").split())):
                names = [name.rstrip(".") for name in found[1].split()]
                lines += [f"{file.relative_to(root)}: {name}" for name in names if not (root / name).exists()]
    return lines


def test_the_tests_that_modules_name_are_there() -> None:
    assert missing_tests(ROOT) == []


def test_a_test_that_is_not_there_is_found(tmp_path: Path) -> None:
    for name, text in {
        "sideplug/a.py": '"""A.\n\nIt knows nothing. Test: pytest tests/test_a.py tests/b\n"""',
        "sideplug/room/b.py": '"""B. Test: pytest\ntests/test_none.py."""\nclass C:\n    """Test: pytest tests/b"""',
        "tests/test_a.py": "",
        "tests/b/test_b.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert missing_tests(tmp_path) == ["sideplug/room/b.py: tests/test_none.py"]
