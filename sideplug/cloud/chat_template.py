"""A model's chat template: it turns messages into the text that the model was trained on.

It is foreign code. It runs in Jinja's sandbox, with a bound on its steps and on its texts, and whatever it raises is
its own fault, in one sentence. It does not know tokens. Test: pytest tests/cloud/test_chat_template.py
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any, cast

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from sideplug.contract.errors import InputError, UnknownModel

MAX_STEPS = 50_000  # loop passes, calls and filters of one rendering …
STEPS_PER_MESSAGE = 200  # … and for each message that is rendered
MAX_CHARACTERS = 16 << 20  # of a text, or entries of a list, that a template makes
MAX_BITS = 4096  # of a number that a template makes
_WIDTH = re.compile(r"\d{6}|\*")  # in a format string: a width that would fill the memory
_steps: ContextVar[int] = ContextVar("steps", default=0)


class ChatTemplate:
    """A template's source, compiled. `constants`: the texts that it compares and writes, as it spells them.

    variables: what it finds beside the messages (bos_token, …). Raises UnknownModel for a source that can't be read.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        self._variables = dict(variables)
        environment = _Environment()
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except Exception as error:  # Jinja's own classes, or a RecursionError
            raise UnknownModel(f"the model's chat template can't be read: {_words(error)}") from error
        self.constants = frozenset(
            node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str) and node.value
        )

    def render(
        self, messages: Sequence[Mapping[str, Any]], ask: bool, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """Return the text of these messages; `ask` adds the opening of the assistant's turn. Raises InputError."""
        count = _steps.set(-STEPS_PER_MESSAGE * len(messages))
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] if tools else None,
                documents=None,
                add_generation_prompt=ask,
                **self._variables,
            )
        except _Refused as error:
            raise InputError(f"the base model's chat template refuses these messages: {error}") from error
        except Exception as error:  # whatever foreign code does
            raise InputError(f"the base model's chat template fails on these messages: {_words(error)}") from error
        finally:
            _steps.reset(count)


class _Refused(jinja2.TemplateError):
    """The template's own word against messages."""


def _refuse(message: str = "") -> None:
    raise _Refused(message)


def _words(error: Exception) -> str:
    """Return what an error says, in one line."""
    if isinstance(error, RecursionError):
        return "it calls itself without an end"
    if isinstance(error, MemoryError):
        return "it takes all of the memory"
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line.replace("'NoneType' object", "none").replace("NoneType", "none")[:300]


class _Generation(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %}, which mark the assistant's words for those who train the model."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Return the tag's body, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox as transformers sets it up, with bounds: `_step` counts, `_within` measures."""

    intercepted_binops = frozenset("+*%") | {"**"}

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Return the pieces of a block, a macro or the whole, joined. Raises TemplateError for too long a text."""
        parts, size = [], 0
        for piece in pieces:
            size += len(piece)
            _check_size(size)
            parts.append(piece)
        return "".join(parts)

    def __init__(self) -> None:
        extensions = [jinja2.ext.loopcontrols, jinja2.ext.do, _Generation]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        del self.globals["lipsum"]
        self.filters["tojson"] = _to_json
        self.filters = {name: _bounded(function) for name, function in self.filters.items()}
        self.filters["_within"] = _within
        self.filters["_counted"] = _Counted
        self.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        """Return the tree of a source, in which every loop is counted and every joined text measured."""
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(jinja2.nodes.For)):
            loop.iter = _filtered(cast(jinja2.nodes.Expr, loop.iter), "_counted")
        for block in tree.find_all(jinja2.nodes.AssignBlock):
            block.filter = _filtered(block.filter, "_within")
        _measure_concatenations(tree)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return left operator right. Raises TemplateError for a result that is too large."""
        _step()
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and not (numbers and -MAX_BITS < left.bit_length() * right < MAX_BITS):
            raise jinja2.TemplateError("it raises numbers to powers that are too large")
        if operator == "*" and numbers:
            _check_size(left.bit_length() + right.bit_length(), MAX_BITS)
        elif operator == "*":
            sizes = [part if isinstance(part, int) else _size(part) for part in (left, right)]
            _check_size(sizes[0] * sizes[1])
        elif operator == "%" and isinstance(left, str) and _WIDTH.search(left):
            raise jinja2.TemplateError("it formats a text too wide")
        return _within(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return what a call gives. Raises TemplateError for one call too many, or a result that is too large."""
        _step()
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)  # the sandbox wraps str.format
        if isinstance(owner, str):
            _check_call(obj.__name__, owner, (*args, *kwargs.values()))
        result = super().call(context, obj, *args, **kwargs)
        if isinstance(result, range):
            _step(len(result))
        return _within(result)


class _Counted:
    """What a loop goes over: each pass is a step."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            _step()
            yield item

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]  # Jinja expects a TypeError of what has no length


def _filtered(node: jinja2.nodes.Expr | None, name: str) -> jinja2.nodes.Filter:
    """Return the tree of node | name."""
    filtered = jinja2.nodes.Filter(node, name, [], [], None, None)
    filtered.set_lineno(node.lineno if node else 1)
    return filtered


def _measure_concatenations(node: jinja2.nodes.Node) -> None:
    """Let every a ~ b below a node be measured."""
    for field, value in node.iter_fields():
        for i, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, jinja2.nodes.Node):
                continue
            _measure_concatenations(child)
            if isinstance(child, jinja2.nodes.Concat):
                measured = _filtered(child, "_within")
                measured.environment = node.environment
                if isinstance(value, list):
                    value[i] = measured
                else:
                    setattr(node, field, measured)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that counts as a step, and whose result is measured."""

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _step()
        given = (*args, *kwargs.values())
        text = next((value for value in given if isinstance(value, str)), None)
        if text is not None:
            _check_call(function.__name__, text, given)
        result = function(*args, **kwargs)
        return iter(_Counted(result)) if isinstance(result, Iterator) else _within(result)

    return bounded


def _check_call(name: str, text: str, args: Sequence[Any]) -> None:
    """Raise TemplateError where a text's method, or a filter, with these arguments would make a text too large."""
    if "format" in name and any(isinstance(value, str) and _WIDTH.search(value) for value in (text, *args)):
        raise jinja2.TemplateError("it formats a text too wide")
    widths = [value for value in args if isinstance(value, int)]
    _check_size(max(map(abs, widths), default=0) * (1 + text.count("\n") + text.count("\t")))
    texts = [len(value) for value in args if isinstance(value, str)]
    if "replace" in name or "join" in name:
        _check_size((len(text) + 1) * max(texts, default=0) if max(texts, default=0) > 64 else 0)


def _step(count: int = 1) -> None:
    steps = _steps.get() + count
    _steps.set(steps)
    if steps > MAX_STEPS:
        raise jinja2.TemplateError(f"it takes more than {MAX_STEPS:,} steps")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 0


def _check_size(size: int, most: int = MAX_CHARACTERS) -> None:
    if size > most:
        raise jinja2.TemplateError("it makes a text, list or number that is too large")


def _within(value: Any) -> Any:
    """Return the value; a large one costs more steps. Raises TemplateError for one that is too large."""
    size = _size(value)
    _check_size(size)
    _step(size // (16384 if isinstance(value, str) else 16))
    if isinstance(value, int):
        _check_size(value.bit_length(), MAX_BITS)
    return value


def _to_json(value: Any, **how: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **how})
