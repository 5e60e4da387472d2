"""A person's files as training examples: a prompt and the reply that the person would want.

    alpaca       {"instruction", "input"?, "output"}            JSON array or JSON lines; LongLaMP has no instruction
                 {"id", "input"} in X_questions.json            LaMP's, with the outputs in X_outputs.json beside it
    messages     {"messages": [{"role", "content"}, …]}         OpenAI's; each assistant turn is an example
    sharegpt     {"conversations": [{"from", "value"}, …]}
    text         {"text"}, JSON lines; or a plain file           cut into passages of whole paragraphs
A folder is its files, in the order of their names. It does not know tokens: the cloud's tokenizer counts them.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from sideplug.contract.errors import DataError
from sideplug.contract.text import Prompt

T = TypeVar("T")
FORMATS = ("auto", "alpaca", "messages", "sharegpt", "text")
SUFFIXES = (".json", ".jsonl", ".ndjson", ".txt", ".md")
PASSAGE_WORDS = 150
GENERAL_TOKENS = 32  # of a general reply: what the base says first is where a plugin would break in
_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Example:
    """One thing to learn. `where` is its "file:line", for errors."""

    prompt: Prompt
    reply: str
    where: str
    write: int = 0  # of general text: tokens that the base is to write itself, greedily, as the reply

    def to_wire(self) -> dict[str, Any]:
        written = {"write": self.write} if self.write else {}
        return {**self.prompt.to_wire(), "reply": self.reply, **written}


def read(path: Path, form: str = "auto", skip: Path | None = None) -> list[Example]:
    """All examples of a file or folder, but for what is in the folder `skip`. Raises DataError with file and line."""
    if form not in FORMATS:
        raise DataError(f"--format must be one of {', '.join(FORMATS)}, got {form!r}")
    if path.is_dir():
        own = skip.resolve() if skip else None
        files = sorted(
            file
            for file in path.rglob("*")
            if file.suffix in SUFFIXES and not file.name.startswith(".") and own not in file.resolve().parents
        )
        answers = {_outputs_of(file) for file in files}
        files = [file for file in files if file not in answers]
        if not files:
            raise DataError(f"the folder {path} has no {', '.join(SUFFIXES)} files")
    elif path.exists():
        files = [path]
    else:
        raise DataError(f"there is no file or folder {path}")
    examples = [example for file in files for example in _read_file(file, form)]
    if not examples:
        raise DataError(f"{path} has no examples: it is empty")
    return examples


def split(examples: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(training, held out), the held-out share drawn by seed; at least one example on each side."""
    if len(examples) < 2:
        raise DataError(f"there must be at least 2 examples, one of them to be held out; got {len(examples)}")
    if not 0 < share < 1:
        raise DataError(f"the held-out share must be between 0 and 1, got {share}")
    held = min(len(examples) - 1, max(1, round(share * len(examples))))
    chosen = set(random.Random(seed).sample(range(len(examples)), held))
    return [e for i, e in enumerate(examples) if i not in chosen], [examples[i] for i in sorted(chosen)]


def some(examples: list[T], limit: int, seed: int = 0) -> list[T]:
    """At most `limit` of them (0: all), drawn by seed, in their order."""
    if not 0 < limit < len(examples):
        return examples
    return [examples[i] for i in sorted(random.Random(seed).sample(range(len(examples)), limit))]


def general(path: Path | None = None) -> list[Example]:
    """Prompts that the base is to answer itself, so that a plugin learns to be silent: a file's, or our own list.

    A text file has one on each line, any other file its examples' prompts. Raises DataError.
    """
    if path is None:
        return [Example(Prompt.user(line), "", "", GENERAL_TOKENS) for line in _lines("retain.txt")]
    if path.suffix in (".txt", ".md"):
        try:
            lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} can't be read: {error}") from error
        return [Example(Prompt.user(line), "", str(path), GENERAL_TOKENS) for line in lines if line]
    return [Example(e.prompt, "", e.where, GENERAL_TOKENS) for e in read(path)]


def hard_negatives(personal: Sequence[Example]) -> list[Example]:
    """Questions for what the person has not told, for the base to answer: a plugin that never met one invents.

    What the person asks for as "my …", with other things in its place. Phrasings are the person's own; were they
    others, a plugin would learn to be silent wherever it meets those.
    """
    asked = [found for found in map(_asked_for, personal) if found]
    counts = Counter(before + "{}" + behind for before, _, behind in asked)
    phrasings = [phrasing for phrasing, count in counts.most_common(8) if count > 1] or ["What is my {}?"]
    told = [set(re.findall(r"\w+", thing.lower())) for _, thing, _ in asked]
    things = [thing for thing in _lines("hard_negatives.txt") if set(re.findall(r"\w+", thing.lower())) not in told]
    lines = [phrasings[i % len(phrasings)].replace("{}", thing) for i, thing in enumerate(things)]
    return [Example(Prompt.user(line), "", "", GENERAL_TOKENS) for line in lines]


def _asked_for(example: Example) -> tuple[str, str, str] | None:
    """A prompt that asks for something of one's own, taken apart: ("What is my ", "dog's name", "?")."""
    if not example.prompt.messages:
        return None
    text = example.prompt.messages[-1]["content"].strip()
    found = re.fullmatch(r"(.{0,40}\bmy )([\w' -]{1,40}?)((?: is)?(?:,[\w' ]{1,20})?[?.!]?)", text, re.IGNORECASE)
    return found.groups() if found else None  # type: ignore[return-value]


def _lines(name: str) -> list[str]:
    return (resources.files("sideplug.training") / name).read_text("utf-8").splitlines()


def is_hard_negative(example: Example) -> bool:
    """A question of the personal kind: to a gate it looks like the person's own, so it can't be told from those."""
    return re.search(r"\bmy\b", (example.prompt.messages or ({"content": ""},))[-1]["content"].lower()) is not None


def _read_file(file: Path, form: str) -> Iterator[Example]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{line}: must be UTF-8 text, got the byte 0x{error.object[error.start]:02x}") from error
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror or error}") from error
    if not text.strip():
        raise DataError(f"{file} is empty")
    if (file.suffix not in (".json", ".jsonl", ".ndjson") and text.lstrip()[:1] not in "{[") or (
        form == "text" and file.suffix in (".txt", ".md")
    ):
        if form not in ("auto", "text"):
            raise DataError(f"{file}:1: must be JSON for --format {form}, got plain text")
        yield from _passages(text, file)
        return
    outputs = _outputs_of(file)
    golds = _golds(outputs) if outputs else {}
    for line, record in _records(text, file):
        where = f"{file}:{line}"
        if not isinstance(record, dict):
            raise DataError(f"{where}: an example must be a JSON object, got {type(record).__name__}")
        if outputs:
            if str(record.get("id")) not in golds:
                raise DataError(f"{where}: {outputs.name} has no output for the id {str(record.get('id'))[:40]!r}")
            record = {"input": record.get("input"), "output": golds[str(record["id"])]}
        yield from _examples(record, _detect(record, where) if form == "auto" else form, where)


def _outputs_of(file: Path) -> Path | None:
    """LaMP's X_outputs.json beside X_questions.json, where this is one."""
    other = file.with_name(file.name.replace("questions", "outputs"))
    return other if file.suffix == ".json" and other != file and other.is_file() else None


def _golds(file: Path) -> dict[str, Any]:
    """Outputs by id. Raises DataError."""
    try:
        return {str(gold["id"]): gold["output"] for gold in json.loads(file.read_bytes())["golds"]}
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{file} must be {{"golds": [{{"id", "output"}}, …]}}, as LaMP has it') from error


def _records(text: str, file: Path) -> Iterator[tuple[int, Any]]:
    """(line, value) of each element of a JSON array, or of each line of JSON lines."""
    stripped = text.lstrip()
    if not stripped.startswith("["):
        try:  # one object over several lines is one record
            yield 1, json.loads(text)
            return
        except ValueError:
            pass
        for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also cut inside JSON strings
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise DataError(f"{file}:{number}: this line is not JSON: {error}") from error
        return
    decoder = json.JSONDecoder()
    spaces = re.compile(r"\s*")

    def skip(position: int) -> int:
        return spaces.match(text, position).end()  # type: ignore[union-attr]

    at = skip(text.index("[") + 1)
    number, counted = 1, 0
    while at < len(text) and text[at] != "]":
        number, counted = number + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}:{error.lineno}: not JSON: {error.msg}") from error
        yield number, value
        at = skip(at)
        if text[at : at + 1] == ",":
            at = skip(at + 1)
        elif text[at : at + 1] != "]":
            number = text.count("\n", 0, at) + 1
            raise DataError(f"{file}:{number}: the array must go on with a comma or end with ]")
    if at >= len(text):
        raise DataError(f"{file}:{text.count(chr(10)) + 1}: the array is cut off: it must end with ]")


def _detect(record: dict[str, Any], where: str) -> str:
    for key, form in (("messages", "messages"), ("conversations", "sharegpt"), ("output", "alpaca"), ("text", "text")):
        if key in record:
            return form
    keys = ", ".join(map(str, list(record)[:6])) or "none"
    raise DataError(
        f"{where}: an example must have instruction and output, messages, conversations or text; its keys: {keys}"
    )


def _examples(record: dict[str, Any], form: str, where: str) -> Iterator[Example]:
    if form == "alpaca":
        alone = "instruction" not in record and "input" in record
        instruction = _text(record, "input" if alone else "instruction", where)
        reply = _text(record, "output", where)
        given = "" if alone else record.get("input") or ""
        if not isinstance(given, str):
            raise DataError(f"{where}: input must be text, got {type(given).__name__}")
        if not reply.strip():
            raise DataError(f"{where}: output must not be empty")
        yield Example(Prompt.user(f"{instruction}\n\n{given}" if given.strip() else instruction), reply, where)
    elif form == "messages":
        yield from _turns(_list(record, "messages", where), "role", "content", where)
    elif form == "sharegpt":
        yield from _turns(_list(record, "conversations", where), "from", "value", where)
    else:
        text = _text(record, "text", where)
        if not text.strip():
            raise DataError(f"{where}: text must not be empty")
        for passage in _cut(text):
            yield Example(Prompt(text=""), passage, where)


def _turns(turns: list[Any], role_key: str, content_key: str, where: str) -> Iterator[Example]:
    messages: list[dict[str, str]] = []
    replies = 0
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise DataError(f"{where}: message {number} must be an object, got {type(turn).__name__}")
        role = _SHAREGPT_ROLES.get(str(turn.get(role_key)))
        content = turn.get(content_key)
        if role is None:
            raise DataError(
                f"{where}: message {number}'s {role_key} must be one of {', '.join(_SHAREGPT_ROLES)}, "
                f"got {str(turn.get(role_key))[:40]!r}"
            )
        if not isinstance(content, str):
            raise DataError(f"{where}: message {number}'s {content_key} must be text, got {type(content).__name__}")
        if role == "assistant" and messages and turn.get("weight") != 0:  # OpenAI's: 0 is context, not to be learnt
            replies += 1
            yield Example(Prompt(messages=tuple(messages)), content, where)
        messages = [*messages, {"role": role, "content": content}]
    if not replies:
        raise DataError(f"{where}: there must be an assistant's message after another one")


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        got = "none" if value is None else type(value).__name__
        raise DataError(f"{where}: {key} must be text, got {got}")
    return value


def _list(record: dict[str, Any], key: str, where: str) -> list[Any]:
    value = record.get(key)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {key} must be a list with messages in it")
    return value


def _passages(text: str, file: Path) -> Iterator[Example]:
    at = 0
    for passage in _cut(text):
        at = max(at, text.find(passage[:40].split("\n")[0], at))
        yield Example(Prompt(text=""), passage, f"{file}:{text.count(chr(10), 0, at) + 1}")


def _cut(text: str, words: int = PASSAGE_WORDS) -> Iterator[str]:
    """Passages of about `words` words: whole paragraphs where they fit, long ones cut between sentences."""
    passage: list[str] = []
    count = 0
    for paragraph in re.split(r"\n\s*\n", text):
        sentences = re.split(r"(?<=[.!?;:])\s+", re.sub(r"\s+", " ", paragraph).strip())
        for piece in _whole_or(sentences, words):
            size = len(piece.split())
            if not size:
                continue
            if passage and count + size > words:
                yield "\n\n".join(passage)
                passage, count = [], 0
            passage.append(piece)
            count += size
    if passage:
        yield "\n\n".join(passage)


def _whole_or(sentences: list[str], words: int) -> Iterator[str]:
    """The paragraph as one piece when it fits, else pieces of sentences (a sentence alone may still be longer)."""
    piece: list[str] = []
    count = 0
    for sentence in sentences:
        size = len(sentence.split())
        if piece and count + size > words:
            yield " ".join(piece)
            piece, count = [], 0
        piece.append(sentence)
        count += size
    if piece:
        yield " ".join(piece)
