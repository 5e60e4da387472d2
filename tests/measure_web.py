"""What the browser's device takes beside NumPy's: ms a correction by kind, ms a question, ms to unseal, MB.

Run on a machine that does nothing else: python -m tests.measure_web; it writes bench/results/web.json. Corrections are
of a 135M model's shapes (9 taps of 64, width 576); the memory is that of 124 things of `own_words/tune`.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from playwright.sync_api import sync_playwright

from sideplug.bench.meters import machine
from sideplug.contract.gate import Gate
from sideplug.contract.tap import Tap
from sideplug.memory import weights
from sideplug.memory.part import Memory
from sideplug.memory.store import Entry
from sideplug.plugins import Plugin
from sideplug.plugins.base import ONE_TEXT, Shape, TrainedPart, trained_kind
from sideplug.plugins.sealed_file import seal, unseal
from sideplug.web.build import build

ROOT = Path(__file__).parent.parent
OWN = ROOT / "sideplug" / "bench" / "own_words" / "tune"
WIDTHS = {"ladder": 256, "mlp": 256, "attention": 192}
ROWS, QUESTIONS, ROUNDS = 200, 20, 3
IN_BROWSER = """async ([files, codes, sealed, passphrase, questions]) => {
    const [{Plugin, parse}, {Memory}] = [await import("./plugin.js"), await import("./memory.js")];
    const [{Encoder}, {unseal}] = [await import("./encoder.js"), await import("./sealed.js")];
    const bytesOf = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
    const rows = codes.map((row) => Float32Array.from(row));
    const found = {corrections: {}};
    for (const [kind, data] of Object.entries(files)) {
        const part = new Plugin(bytesOf(data)).parts[0].begin();
        for (const row of rows) part.answer(row);
        const began = performance.now();
        for (const row of rows) part.answer(row);
        found.corrections[kind] = (performance.now() - began) / rows.length;
    }
    const read = async (path) => parse(new Uint8Array(await (await fetch(path)).arrayBuffer())).tensors;
    let began = performance.now();
    const opened = await unseal(bytesOf(sealed), passphrase);
    found.unseal = performance.now() - began;
    const [verifier, encoder] = [await read("verifier.safetensors"), new Encoder(await read("encoder.safetensors"))];
    let memory;
    new Plugin(opened, (database) => (memory = new Memory(database, verifier, encoder)));
    for (const question of questions.slice(0, 3)) memory.judged(question);
    began = performance.now();
    for (const question of questions) memory.judged(question);
    found.question = (performance.now() - began) / questions.length;
    return found;
}"""


def a_part(kind: str) -> TrainedPart:
    tap, rng = Tap.spread(30, 576), np.random.default_rng(0)
    known = trained_kind(kind)
    params = known.init(Shape(len(tap.layers), tap.rank, WIDTHS[kind], 576), rng)
    random = {n: v if v.any() else rng.normal(0, 0.05, v.shape).astype(np.float32) for n, v in params.items()}
    return TrainedPart(known, tap, random, Gate("open"))


def a_memory() -> tuple[Memory, list[str]]:
    told, notes, asked = (
        [json.loads(line) for line in (OWN / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("told", "notes", "asked")
    )
    memory = Memory()
    memory.store.add(Entry(each["instruction"], each["output"]).check() for each in told)
    memory.store.add(Entry("", each["note"]).check() for each in notes)
    memory.fill()
    return memory, [each["question"] for each in asked[:: len(asked) // QUESTIONS]][:QUESTIONS]


def numpy_ms(parts: dict[str, TrainedPart], codes: np.ndarray, memory: Memory, questions: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"corrections": {}}
    for kind, part in parts.items():
        past = part.kind.new_past(part.params)
        began = time.perf_counter()
        for row in codes:
            part.kind.forward(part.params, row[None], ONE_TEXT, past)
        found["corrections"][kind] = 1000 * (time.perf_counter() - began) / len(codes)
    began = time.perf_counter()
    for question in questions:
        memory.judged(question)
    return {**found, "question": 1000 * (time.perf_counter() - began) / len(questions)}


def tree_mb(process: psutil.Process) -> float:
    """The memory of the largest of the browser's processes: the page's."""
    return max(each.memory_info().rss for each in process.children(recursive=True)) / 1e6


def main() -> None:
    weights.fetch_encoder(print)
    parts = {kind: a_part(kind) for kind in WIDTHS}
    codes = np.random.default_rng(1).normal(size=(ROWS, 9, 64)).astype(np.float32)
    memory, questions = a_memory()
    sealed = seal(Plugin("any", "any", [memory]).to_bytes(), "a passphrase")
    files = {k: base64.b64encode(Plugin("f" * 64, "m", [p]).to_bytes()).decode() for k, p in parts.items()}
    given = [files, codes.reshape(ROWS, -1).tolist(), base64.b64encode(sealed).decode(), "a passphrase", questions]
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        build(Path(scratch))
        server = ["python3", "-m", "http.server", "8123", "-b", "127.0.0.1", "-d", scratch]
        with subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as serving:
            time.sleep(1)
            try:
                for number in range(ROUNDS):
                    ours = numpy_ms(parts, codes, memory, questions)
                    began = time.perf_counter()
                    unseal(sealed, "a passphrase")
                    ours["unseal"] = 1000 * (time.perf_counter() - began)
                    with sync_playwright() as engine:
                        browser = engine.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
                        page = browser.new_context(viewport={"width": 390, "height": 780}).new_page()
                        page.goto("http://127.0.0.1:8123")
                        theirs = page.evaluate(IN_BROWSER, given)
                        theirs["page_mb"] = tree_mb(psutil.Process(os.getpid()))
                        browser.close()
                    rounds.append({"browser": theirs, "numpy": ours})
                    print(number + 1, json.dumps(rounds[-1]))
            finally:
                serving.terminate()
    result = {"machine": machine(), "threads": os.environ.get("OPENBLAS_NUM_THREADS", "all"), "rounds": rounds}
    (ROOT / "bench" / "results" / "web.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
