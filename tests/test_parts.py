"""A new plugin kind is one file and one registration; a plugin is parts of several kinds; a memory speaks alone.

Two kinds are toys (tests/plugins/toy_*.py): one attends to earlier positions, so the codes of the prompt and of ungated
positions must travel too; the other is a memory that answers by mixtures. They and the kind `attention` go every way
that the product has.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sideplug.cloud.model.base import Chunk
from sideplug.contract.codec import pack, unpack
from sideplug.contract.correction import mix
from sideplug.contract.errors import InputError, PluginError
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling, choose
from sideplug.contract.tap import ContextSlice, Tap
from sideplug.contract.text import Prompt
from sideplug.device import audit
from sideplug.device.client import Client
from sideplug.device.head import DeviceHead
from sideplug.device.link import WebSocketLink
from sideplug.device.lock import lock, unlock
from sideplug.device.reconnect import RetryPolicy
from sideplug.device.reply import DecodeOptions
from sideplug.device.responders import PluginResponder
from sideplug.device.session import Session
from sideplug.plugins import Plugin, TrainedPart, base, register, trained_kinds
from sideplug.plugins.attention import Attention, sizes
from sideplug.plugins.base import ONE_TEXT, PartReply, Shape
from sideplug.readers import Example
from sideplug.training import pipeline, recorder
from sideplug.training.fit import TrainConfig
from sideplug.training.recipe import Recipe
from sideplug.training.update import update
from tests.conftest import Cloud, a_link, a_plugin
from tests.plugins.toy_attention import ToyAttention
from tests.plugins.toy_memory import ToyMemory, ToyMemoryKind


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """The toys are known while this file runs, and to no other test."""
    register(ToyAttention())
    register(ToyMemoryKind())
    yield
    for name in ("toy-attention", "toy-memory"):
        del base._KINDS[name]


TAP = Tap((0, 1, 2), 16)
TOKENS = 24
SAMPLINGS = {"greedy": Sampling(), "sampled": Sampling(0.9, top_k=40, seed=7)}
OPTIONS = {"plain": DecodeOptions(0), "window 1": DecodeOptions(1), "window 24": DecodeOptions(24)}
QUESTION, STORED = "Where is the mill?", [40, 41, 42, 43, 44, 45]


def an_attention(fingerprint: str, scale: float = 0.4, seed: int = 3) -> Plugin:
    """A plugin of the toy kind whose every parameter is random."""
    kind = ToyAttention()
    params = kind.init(Shape(len(TAP.layers), TAP.rank, 16, 64), np.random.default_rng(0))
    plugin = Plugin(fingerprint, "tiny", [TrainedPart(kind, TAP, params)])
    rng = np.random.default_rng(seed)
    for name, value in params.items():
        params[name] = (value + rng.normal(0, scale, value.shape)).astype(np.float32)
    return plugin


def a_reader(fingerprint: str, scale: float = 0.3, seed: int = 3) -> Plugin:
    """A plugin of the kind `attention` whose every parameter is random; a text is longer than its window."""
    rng = np.random.default_rng(seed)
    shapes = sizes(len(TAP.layers) * TAP.rank, 16, 64, (2, 4, 9))
    params = {name: rng.normal(0, scale, shape).astype(np.float32) for name, shape in shapes.items()}
    return Plugin(fingerprint, "tiny", [TrainedPart(Attention(), TAP, params)])


LOOKING_BACK: dict[str, Callable[[str], Plugin]] = {"toy attention": an_attention, "attention": a_reader}
looking_back = pytest.mark.parametrize("look", LOOKING_BACK.values(), ids=LOOKING_BACK.keys())


def with_memory(plugin: Plugin) -> Plugin:
    """The same plugin with a memory before it."""
    memory = ToyMemory(QUESTION, np.array(STORED, np.int32), Tap((1,), 16))
    return Plugin(plugin.base, plugin.base_name, [*plugin.parts, memory])


def naive(cloud: Cloud, prompt: Prompt, sampling: Sampling, plugin: Plugin, gates: list[Gate]) -> list[int]:
    """One person, one process, token by token, row by row: what every path must give."""
    model, tokenizer = cloud.engine.model, cloud.engine.tokenizer
    ids = tokenizer.encode(prompt)
    start, new = len(ids), list(ids)
    cache = model.new_cache(model.context)
    parts = [(part, part.begin(prompt)) for part in plugin.parts]
    gates = [Gate(reply.gate) if reply.gate else gate for (_, reply), gate in zip(parts, gates, strict=True)]
    scores: list[float | None] = [None] * len(parts)
    while len(ids) - start < TOKENS:
        out = model.forward([Chunk(new, cache)], range(model.blocks + 1))
        z_1D, row = out.z([len(new) - 1]), len(ids) - len(new)
        opens = []
        for number, gate in enumerate(gates):
            scores[number] = gate.score(z_1D[0], scores[number])
            opens.append(bool(gate.opens(scores[number])))
        said, total, mixture = None, None, None
        for n in range(len(new)):
            last = n == len(new) - 1
            for (part, reply), is_open in zip(parts, opens, strict=True):
                hidden = out.tapped([n], part.tap.layers)
                code_KR = part.tap.decode(*part.tap.encode(hidden))[0]
                if not last or not is_open or (said is not None and part.role == "manner"):
                    reply.context(row + n, code_KR[None])
                    continue
                reply.hear(start, ids[start:])
                correction = reply.answer(len(ids), code_KR)
                if correction is not None and part.role == "memory":
                    said = correction
                elif correction is not None and correction.delta_D is not None:
                    total = correction.delta_D if total is None else total + correction.delta_D
        if said is not None:
            total, mixture = said.delta_D, said.mixture
        if total is not None:
            z_1D = z_1D + unpack(*pack(total[None], int8=True))
        token = choose(mix(model.logits(z_1D)[0], mixture), sampling, len(ids), ids)
        if token in tokenizer.stop_ids:
            break
        ids, new = [*ids, token], [token]
    return ids[start:]


@contextmanager
def a_session(cloud: Cloud, plugin: Plugin, breaks: Iterator[int] = iter(()), **more: Any) -> Iterator[Session]:
    """A session whose links break after so many messages, then no more."""

    class Breaking(WebSocketLink):
        def _receive(self, timeout_s: float) -> Any:
            self.left = getattr(self, "left", None) or next(breaks, 10**9)
            self.left -= 1
            if self.left <= 0:
                self.close()
            return super()._receive(timeout_s)

    def connect() -> WebSocketLink:
        link = a_link(cloud.url)
        link.__class__ = Breaking
        return link

    session = Session(connect(), PluginResponder(plugin, **more), connect, RetryPolicy(20.0))
    with session:
        yield session


def a_gate(seed: int = 1) -> Gate:
    return Gate("linear", np.random.default_rng(seed).normal(size=64).astype(np.float32), 0.1, memory=0.4)


# The kind alone ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_toy_is_one_small_file() -> None:
    lines = (Path(__file__).parent / "plugins" / "toy_attention.py").read_text().splitlines()
    assert len(lines) <= 80
    assert "toy-attention" in trained_kinds()


def test_texts_at_once_are_texts_alone() -> None:
    part = an_attention("b").trained
    code = np.random.default_rng(0).normal(size=(11, 3, 16)).astype(np.float32)
    together = part.correct(code, np.array([0, 4]))
    np.testing.assert_allclose(together[:4], part.correct(code[:4]), atol=1e-6)
    np.testing.assert_allclose(together[4:], part.correct(code[4:]), atol=1e-6)
    past = part.kind.new_past(part.params)
    rows = [part.kind.forward(part.params, row[None], ONE_TEXT, past)[0] for row in code[:4]]
    np.testing.assert_allclose(np.concatenate(rows), together[:4], atol=1e-5)


def test_gradients_against_differences() -> None:
    part = an_attention("b", 0.1).trained
    rng = np.random.default_rng(0)
    code, starts = rng.normal(size=(9, 3, 16)).astype(np.float32), np.array([0, 5])
    d_out = rng.normal(size=(9, 64)).astype(np.float32)
    params = {name: value.astype(np.float64) for name, value in part.params.items()}
    _, saved = part.kind.forward(params, code.astype(np.float64), starts)
    gradients = part.kind.backward(params, saved, d_out.astype(np.float64))
    for name, value in params.items():
        for index in [tuple(rng.integers(size) for size in value.shape) for _ in range(4)]:
            values = []
            for step in (1e-4, -1e-4):
                moved = {**params, name: value.copy()}
                moved[name][index] += step
                values.append(float((part.kind.forward(moved, code.astype(np.float64), starts)[0] * d_out).sum()))
            assert gradients[name][index] == pytest.approx((values[0] - values[1]) / 2e-4, rel=5e-2, abs=2e-3)


# Served ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

PROMPTS = [Prompt(ids=tuple(range(5, 45))), Prompt.user("Is it far to the mill?"), Prompt(text="The river is")]


@pytest.mark.parametrize("how", SAMPLINGS)
@pytest.mark.parametrize("gated", [False, True], ids=["open", "gated"])
@pytest.mark.parametrize(
    "which",
    ["toy attention", "attention", "memory and ladder", "memory and toy attention", "memory and attention"],
)
def test_every_path_gives_the_same_text(cloud: Cloud, which: str, gated: bool, how: str) -> None:
    fingerprint, kind = cloud.base.fingerprint, which.removeprefix("memory and ")
    plugin = a_plugin(fingerprint, scale=0.2) if kind == "ladder" else LOOKING_BACK[kind](fingerprint)
    plugin = plugin if which == kind else with_memory(plugin)
    gate = a_gate() if gated else Gate("open")
    plugin.trained.gate = gate
    untouched, rolled_back, rows = [], 0, 0
    for prompt in [*PROMPTS, Prompt.user(QUESTION)]:
        want = naive(cloud, prompt, SAMPLINGS[how], plugin, plugin.gates)
        untouched.append(naive(cloud, prompt, SAMPLINGS[how], plugin, [Gate("shut")] * len(plugin.gates)) == want)
        for name, options in OPTIONS.items():
            with a_session(cloud, plugin) as session:
                reply = session.generate(prompt, TOKENS, SAMPLINGS[how], options)
                assert [token for piece in reply for token in piece.ids] == want, name
                assert not reply.usage.resumed, "the cloud and the device must agree"
                rolled_back, rows = rolled_back + reply.usage.rolled_back, rows + reply.usage.context_rows
    assert not all(untouched), "the plugin must change something, or this test shows nothing"
    assert rolled_back, "nothing was rolled back"
    assert (rows > 0) == ("attention" in which), "rows without a question come where they are needed, and only there"


def test_a_memory_speaks_alone_and_first(cloud: Cloud) -> None:
    plugin = with_memory(a_plugin(cloud.base.fingerprint))
    with a_session(cloud, plugin) as session:
        reply = session.generate(QUESTION, len(STORED), Sampling(1.0, seed=4))
        assert [token for piece in reply for token in piece.ids] == STORED
        assert reply.usage.rolled_back == 0, "its words were drafted with the prompt"
        other = session.generate("Is it far?", 12)
        assert [token for piece in other for token in piece.ids] != STORED


@looking_back
def test_a_hushed_part_costs_nothing(
    cloud: Cloud, look: Callable[[str], Plugin], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the memory knows that nobody told it, the reply is the base's, and no row comes down."""
    monkeypatch.setattr(ToyMemory, "begin", lambda self, prompt: PartReply(gate="shut", hushes=True))
    plugin = with_memory(look(cloud.base.fingerprint))
    want = naive(cloud, PROMPTS[1], Sampling(), plugin, [Gate("shut")] * len(plugin.gates))
    with a_session(cloud, plugin) as session:
        reply = session.generate(PROMPTS[1], TOKENS)
        assert [token for piece in reply for token in piece.ids] == want
        assert (reply.usage.asked, reply.usage.context_rows, session.link.down["CONTEXT"]) == (0, 0, 0)


@looking_back
def test_the_head_on_the_device_mixes_alike(cloud: Cloud, tmp_path: Path, look: Callable[[str], Plugin]) -> None:
    plugin = with_memory(look(cloud.base.fingerprint))
    with a_session(cloud, plugin) as session:
        model = session.model
        head = DeviceHead.fetch(session.link, tmp_path, model.fingerprint, model.vocab)
        for prompt in (QUESTION, "Is it far to the mill?"):
            texts = [session.generate(prompt, 16, options=DecodeOptions(head=h)).text for h in (None, head)]
            assert texts[0] == texts[1]


# Broken off ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@looking_back
@pytest.mark.parametrize("window", [0, 6])
def test_a_break_after_any_message_changes_nothing(cloud: Cloud, window: int, look: Callable[[str], Plugin]) -> None:
    """The device says which rows it has; what was kept, or is run again, gives the others."""
    plugin = with_memory(look(cloud.base.fingerprint))
    plugin.trained.gate = a_gate()
    prompt, sampling = PROMPTS[1], SAMPLINGS["sampled"]
    want = naive(cloud, prompt, sampling, plugin, plugin.gates)
    resumed = 0
    for after in random.Random(window).sample(range(2, 40), 12):
        with a_session(cloud, plugin, iter([after, after + 3])) as session:
            reply = session.generate(prompt, TOKENS, sampling, DecodeOptions(window))
            assert [token for piece in reply for token in piece.ids] == want, after
            assert reply.usage.resumed <= 2
            resumed += reply.usage.resumed
    assert resumed > 6


@looking_back
def test_a_reused_prefix_has_its_rows(cloud: Cloud, look: Callable[[str], Plugin]) -> None:
    """The next turn of a conversation begins with cached keys and values; the rows behind them come all the same."""
    plugin = look(cloud.base.fingerprint)
    first = [{"role": "user", "content": "Is it far to the mill? I have walked since the morning."}]
    with a_session(cloud, plugin) as session:
        said = session.generate(Prompt(messages=tuple(first)), 16).text
        turns = Prompt(messages=(*first, {"role": "assistant", "content": said}, {"role": "user", "content": "Why?"}))
        want = naive(cloud, turns, Sampling(), plugin, plugin.gates)
        reply = session.generate(turns, TOKENS)
        assert [token for piece in reply for token in piece.ids] == want
        assert reply.usage.cached > 0
        assert not reply.usage.resumed
        assert reply.usage.context_rows >= reply.usage.prompt_tokens - 1


def test_a_cached_prefix_without_rows_is_not_reused(cloud: Cloud) -> None:
    prompt = Prompt.user("Is it far to the sea? I have walked since the day before yesterday.")
    ladder, plugin = a_plugin(cloud.base.fingerprint), an_attention(cloud.base.fingerprint)
    want = naive(cloud, prompt, Sampling(), plugin, plugin.gates)
    for one in (ladder, plugin):
        with a_session(cloud, one) as session:
            reply = session.generate(prompt, TOKENS)
            ids = [token for piece in reply for token in piece.ids]
    assert ids == want
    assert (reply.usage.cached, reply.usage.resumed) == (0, 0)


# On disk, and seen ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", [a_plugin, a_reader])
def test_sealed_exported_and_audited(cloud: Cloud, tmp_path: Path, make: Callable[[str], Plugin]) -> None:
    plugin = with_memory(make(cloud.base.fingerprint))
    folder = tmp_path / "p"
    plugin.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["manner", "memory", "plugin.json"]
    lock(folder, "bees and tea")
    with pytest.raises(PluginError, match="passphrase is wrong"):
        Plugin.load(folder, lambda: "coffee")
    assert Plugin.load(folder, lambda: "bees and tea").to_bytes() == plugin.to_bytes()
    unlock(folder, "bees and tea")
    back = Plugin.load(folder)
    assert Plugin.from_bytes(back.to_bytes(), "x").to_bytes() == plugin.to_bytes()
    record = audit.Recorder(tmp_path / "t.sp")
    with Client(Client.at(cloud.url).address, record).connect(back) as session:
        assert session.generate(QUESTION, 4).text == cloud.engine.tokenizer.decode(STORED[:4])
        assert session.generate("Is it far?", 12).text
    record.close()
    report = audit.report(audit.read(tmp_path / "t.sp"), back)
    assert report.unaccounted == 0
    assert report.text["token ids that a memory said (mixtures)"] >= 4
    assert report.text["token ids drafted for the beginning of a reply"] == len(STORED)


# Trained like any other ───────────────────────────────────────────────────────────────────────────────────────────────

quiet: Any = lambda label, total: contextmanager(lambda: iter([lambda done, losses: None]))()  # noqa: E731
uninterrupted: Any = lambda: contextmanager(lambda: iter([lambda: False]))()  # noqa: E731
NOTES = [
    Example(Prompt.user(f"Where is the {a}?"), f"Behind the {b}.", "") for a, b in itertools.product("abcd", "xyz")
]
RETAIN = [Example(Prompt.user(f"Tell me about {thing}."), "", "", 8) for thing in ("rain", "tea", "bees", "nails")]


@pytest.mark.parametrize("kind", ["toy-attention", "attention"])
def test_trained_updated_and_scored(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("SIDEPLUG_CACHE", str(tmp_path / "cache"))
    client = Client.at(cloud.url)
    recipe = Recipe(kind, 3, 16, width=16, training=TrainConfig(epochs=40, learning_rate=1e-2))
    texts = pipeline.Texts(NOTES[:9], NOTES[9:], RETAIN)
    made = pipeline.make(client, texts, tmp_path / "p", recipe, quiet, uninterrupted)
    assert made.result.best_loss < made.result.base_loss - 0.3
    plugin = Plugin.load(tmp_path / "p")
    assert plugin.to_bytes() == made.plugin.to_bytes()
    with client.connect(plugin) as session:
        judged = recorder.score(session, NOTES[9:])
    assert float(-judged.plugin.mean()) < made.result.best_loss + 0.15, "what was held out is learnt after its figure"
    more = [Example(Prompt.user("Where is the cat?"), "Under the roof.", "")] * 3
    learnt = update(client, tmp_path / "p", more, quiet, uninterrupted, 2, force=True)
    assert learnt.new_after < learnt.new_before
    assert Plugin.load(tmp_path / "p").about["examples"] == 12


def test_a_smaller_context_slice_costs_less(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without a question may carry fewer layers and numbers than an ASK."""
    sizes: list[int] = []
    for small in (False, True):
        if small:
            monkeypatch.setattr(ToyAttention, "context_slice", lambda self, tap: ContextSlice(tap, (1,), 4))
        plugin = an_attention(cloud.base.fingerprint)
        with a_session(cloud, plugin) as session:
            list(session.generate(PROMPTS[0], 4))
            sizes.append(session.link.down["CONTEXT"])
    assert sizes[1] < sizes[0] / 3


def test_what_a_device_needs_and_a_cloud_lacks_is_said(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    from sideplug.cloud import requests

    grant: Callable[..., Any] = requests.grant
    monkeypatch.setattr(requests, "grant", lambda wanted: grant(wanted, []))
    with pytest.raises(InputError) as caught:
        Client.at(cloud.url).connect(an_attention(cloud.base.fingerprint))
    assert "does not have 'context', which the session needs" in str(caught.value)
