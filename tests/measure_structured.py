"""Which library follows a schema best: JSON Schema's own test suite, and µs a token, of three libraries in one run.

Of each schema of draft 2020-12's suite: does the library take it, and does it then allow exactly the suite's valid
instances, written as `json.dumps` writes them? The suite is in the source package of PyPI's jsonschema (json/tests).
Run on a machine that does nothing else, with xgrammar and outlines-core installed beside llguidance:
python -m tests.measure_structured SUITE TOKENIZER.json; it writes bench/results/structured.json.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llguidance
import numpy as np
import outlines_core
import xgrammar
from outlines_core.json_schema import build_regex_from_schema
from tokenizers import Tokenizer

from sideplug.bench.meters import machine
from sideplug.cloud.token_bytes import token_bytes

OUT = Path(__file__).parent.parent / "bench" / "results" / "structured.json"
END, SLOW_S, EVERY = 2, 20, {"outlines-core": 8}  # outlines-core takes seconds a schema, so it is asked every eighth
Follow = Callable[[int], tuple[float, bool]]  # a token → (seconds for the mask before it, whether it was allowed)


class TooSlow(Exception):
    """A schema took more than SLOW_S seconds."""


class Libraries:
    """The three, on one tokenizer. Each `compile` returns what begins a text, and what says whether it may end."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.size = tokenizer.get_vocab_size()
        spelling = token_bytes(tokenizer)
        pieces = [spelling(token) for token in range(self.size)]
        wrapped = type("Spelt", (), {"eos_token_id": END, "bos_token_id": None, "tokens": pieces})()
        wrapped.special_token_ids = [token for token, piece in enumerate(pieces) if not piece]
        type(wrapped).__call__ = lambda _, text: tokenizer.encode(text, add_special_tokens=False).ids
        self.spelt = llguidance.LLTokenizer(llguidance.TokenizerWrapper(wrapped), n_vocab=self.size, eos_token=END)
        info = xgrammar.TokenizerInfo(pieces, xgrammar.VocabType.RAW, vocab_size=self.size, stop_token_ids=[END])
        self.compiler = xgrammar.GrammarCompiler(info, cache_enabled=False)
        self.bits = xgrammar.allocate_token_bitmask(1, self.size)
        listed = {piece: [token] for token, piece in enumerate(pieces) if piece and token != END}
        self.vocabulary = outlines_core.Vocabulary(END, listed)

    def llguidance(self, schema: str) -> Callable[[], tuple[Follow, Callable[[], bool]]]:
        """See the class."""
        source = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": True})
        matcher = llguidance.LLMatcher(self.spelt, source, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())

        def begin() -> tuple[Follow, Callable[[], bool]]:
            matcher.reset()
            take = lambda token: timed(matcher.compute_bitmask, lambda: bool(matcher.try_consume_tokens([token])))  # noqa: E731
            return take, matcher.is_accepting

        return begin

    def xgrammar(self, schema: str) -> Callable[[], tuple[Follow, Callable[[], bool]]]:
        """See the class."""
        compiled = self.compiler.compile_json_schema(schema, any_whitespace=True, strict_mode=False)

        def begin() -> tuple[Follow, Callable[[], bool]]:
            matcher = xgrammar.GrammarMatcher(compiled)
            fill = lambda: matcher.fill_next_token_bitmask(self.bits)  # noqa: E731
            return (lambda token: timed(fill, lambda: matcher.accept_token(token))), lambda: matcher.accept_token(END)

        return begin

    def outlines_core(self, schema: str) -> Callable[[], tuple[Follow, Callable[[], bool]]]:
        """See the class."""
        index = outlines_core.Index(build_regex_from_schema(schema), self.vocabulary)

        def begin() -> tuple[Follow, Callable[[], bool]]:
            guide = outlines_core.Guide(index)

            def go(token: int) -> bool:
                allowed = token in guide.get_tokens()
                if allowed:
                    guide.advance(token, False)
                return allowed

            return (lambda token: timed(guide.get_tokens, lambda: go(token))), lambda: END in guide.get_tokens()

        return begin


def timed(mask: Callable[[], object], take: Callable[[], bool]) -> tuple[float, bool]:
    """(seconds that the mask took, whether the token was allowed)."""
    started_s = time.perf_counter()
    mask()
    return time.perf_counter() - started_s, take()


def cases(suite: Path) -> Iterator[tuple[str, list[str], list[bool]]]:
    """Of each schema of the suite: itself, its instances, and which of them are valid."""
    for file in sorted((suite / "draft2020-12").glob("*.json")):
        for case in json.loads(file.read_text("utf-8")):
            schema = case["schema"]
            if isinstance(schema, dict):
                schema = {name: value for name, value in schema.items() if name != "$schema"}
            texts = [json.dumps(test["data"], ensure_ascii=False) for test in case["tests"]]
            yield json.dumps(schema), texts, [test["valid"] for test in case["tests"]]


def measure(compile_: Any, every: int, suite: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """One library's row."""
    counts, masks_s, compile_s = Counter[str](), list[float](), list[float]()
    for number, (schema, texts, valid) in enumerate(cases(suite)):
        if number % every:
            continue
        counts["schemas"] += 1
        signal.alarm(SLOW_S)
        try:
            started_s = time.perf_counter()
            begin = compile_(schema)
            compile_s.append(time.perf_counter() - started_s)
            taken = []
            for text in texts:
                follow, may_end = begin()
                all_allowed = True
                for token in tokenizer.encode(text, add_special_tokens=False).ids:
                    seconds, allowed = follow(token)
                    masks_s.append(seconds)
                    if not allowed:
                        all_allowed = False
                        break
                taken.append(all_allowed and bool(may_end()))
        except TooSlow:
            counts["too_slow"] += 1
            continue
        except Exception:
            counts["refused"] += 1
            continue
        finally:
            signal.alarm(0)
        counts["schemas_exact"] += taken == valid
        counts["instances"] += len(valid)
        counts["valid_forbidden"] += sum(want and not got for got, want in zip(taken, valid, strict=True))
        counts["invalid_allowed"] += sum(got and not want for got, want in zip(taken, valid, strict=True))
    names = ("schemas", "refused", "too_slow", "schemas_exact", "instances", "valid_forbidden", "invalid_allowed")
    micros = {f"mask_us_{q}": round(1e6 * float(np.quantile(masks_s, q / 100)), 1) for q in (50, 99)}
    millis = {f"compile_ms_{q}": round(1e3 * float(np.quantile(compile_s, q / 100)), 2) for q in (50, 99)}
    return {**{name: counts[name] for name in names}, **micros, **millis}


def main(suite: str, tokenizer_file: str) -> None:
    """Measure and write."""

    def too_slow(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, too_slow)
    tokenizer = Tokenizer.from_file(tokenizer_file)
    libraries, rows = Libraries(tokenizer), {}
    for name in ("llguidance", "xgrammar", "outlines-core"):
        follow = getattr(libraries, name.replace("-", "_"))
        rows[name] = measure(follow, EVERY.get(name, 1), Path(suite), tokenizer)
        print(name, rows[name], flush=True)
    OUT.write_text(json.dumps({"machine": machine(), "libraries": rows}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
