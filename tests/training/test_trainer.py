"""Training learns, equals torch's AdamW, stops early, and resumes to the very same plugin."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sideplug.contract.errors import InputError, PluginError, Stopped
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.plugins import Plugin, TrainedKind
from sideplug.plugins.base import Params, trained_kind
from sideplug.readers import Example
from sideplug.training.fit import Batches, FitState, TrainConfig, take_step
from sideplug.training.head import Head, fetch
from sideplug.training.recorder import record, score
from sideplug.training.tape import Tape
from sideplug.training.trainer import CHECKPOINT, RETAIN_HELD, Result, Trainer
from tests.conftest import Cloud, a_session, twin

TAP = Tap((0, 1, 2), 16)
Stage = tuple[Tape, Tape, Head, str]
FACTS = {"dog": "Pepper", "tea": "lapsang", "town": "Hamar", "sister": "Katrin", "day": "Thursday", "bank": "Midt"}
TRAIN = [Example(Prompt.user(f"What is my {k}?"), f"Your {k} is {v}.", "") for k, v in FACTS.items()] * 3
HELD = [Example(Prompt.user(f"Say what my {k} is."), f"Your {k} is {v}.", "") for k, v in FACTS.items()]


@pytest.fixture(scope="module")
def stage(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = tmp_path_factory.mktemp("tapes")
    with a_session(cloud.url, tap=TAP) as session:
        train = record(session, TAP, TRAIN, folder / "train.tape")
        held = record(session, TAP, HELD, folder / "held.tape")
        whole = np.arange(session.model.vocab, dtype=np.int32)
        return train, held, fetch(session, whole), session.model.fingerprint


def fresh(base: str) -> Plugin:
    return Plugin.new("ladder", base, "tiny", TAP, 24, 64)


CONFIG = TrainConfig(epochs=12, learning_rate=1e-2, batch_tokens=64, weight_decay=0.01, patience=12)


def trainer_of(plugin: Plugin, stage: Stage, config: TrainConfig, folder: Path, **more: Any) -> Trainer:
    train, held, head, base = stage
    return Trainer(plugin.trained, base, head, train, held, config, folder, **more)


def test_it_learns_and_the_exact_loss_agrees(stage: Stage, cloud: Cloud, tmp_path: Path) -> None:
    plugin = fresh(stage[3])
    result = trainer_of(plugin, stage, CONFIG, tmp_path).run()
    assert result.best_loss < result.base_loss * 0.5
    with a_session(cloud.url, plugin) as session:
        judged = score(session, HELD)
        exact_base, exact = judged.base, judged.plugin
    assert -exact_base.mean() == pytest.approx(result.base_loss, rel=0.02)
    assert -exact.mean() == pytest.approx(result.best_loss, rel=0.05)


def test_interrupted_and_resumed_is_the_unbroken_run(stage: Stage, tmp_path: Path) -> None:
    whole, broken = fresh(stage[3]), fresh(stage[3])
    for name in "wb":
        (tmp_path / name).mkdir()
    want = trainer_of(whole, stage, CONFIG, tmp_path / "w").run()
    steps = 0

    def enough() -> bool:
        nonlocal steps
        steps += 1
        return steps % 17 == 0

    trainer = trainer_of(broken, stage, CONFIG, tmp_path / "b")
    stops = 0
    resume = False
    while True:
        try:
            got = trainer.run(resume, wants_stop=enough)
            break
        except Stopped as stopped:
            assert "is kept" in str(stopped)
            stops, resume = stops + 1, True
            trainer = trainer_of(broken, stage, CONFIG, tmp_path / "b")
    assert stops >= 2
    assert (got.best_loss, got.epochs) == (want.best_loss, want.epochs)
    for name, value in whole.trained.params.items():
        np.testing.assert_array_equal(broken.trained.params[name], value)


def test_checkpoints_that_can_not_be_resumed(stage: Stage, tmp_path: Path) -> None:
    def trainer(**changed: Any) -> Trainer:
        return trainer_of(fresh(stage[3]), stage, replace(CONFIG, **changed), tmp_path)

    with pytest.raises(PluginError, match="there is no checkpoint"):
        trainer().run(resume=True)
    with pytest.raises(Stopped):
        trainer().run(wants_stop=lambda: True)
    with pytest.raises(PluginError, match="another training \\(learning_rate was 0.01, is 0.001\\)"):
        trainer(learning_rate=1e-3).run(resume=True)
    whole = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PluginError, match="is damaged"):
        trainer().run(resume=True)


def test_early_stop_keeps_the_best_and_never_worse_than_the_base(stage: Stage, tmp_path: Path) -> None:
    plugin = fresh(stage[3])
    result = trainer_of(plugin, stage, TrainConfig(epochs=40, learning_rate=5.0, patience=2), tmp_path).run()
    assert result.epochs < 40
    assert result.best_loss <= result.base_loss
    judged = trainer_of(plugin, stage, CONFIG, tmp_path).judge(stage[1])
    assert -judged.plugin.mean() == pytest.approx(result.best_loss)


class Given:
    """A term of the objective whose gradient is given."""

    def __init__(self, gradient: np.ndarray) -> None:
        self._gradient = gradient

    def gradient(self, kind: TrainedKind, head: Head, params: Params) -> tuple[float, int, Params]:
        return 0.0, 0, {"w": self._gradient.copy()}


@pytest.mark.twin
def test_adamw_equals_torch(stage: Stage) -> None:
    config = TrainConfig(learning_rate=0.01, warmup_steps=1, clip=1e9)
    rng = np.random.default_rng(0)
    start = rng.normal(size=(5, 4)).astype(np.float32)
    state = FitState.new({"w": start})
    torch = twin("torch")
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimiser = torch.optim.AdamW([parameter], lr=0.01, weight_decay=0.1)
    for step in range(6):
        gradient = rng.normal(size=(5, 4)).astype(np.float32)
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * (1 - step / 6)
        parameter.grad = torch.from_numpy(gradient)
        optimiser.step()
        take_step(trained_kind("ladder"), stage[2], state, [Given(gradient)], config, 6)
    np.testing.assert_allclose(state.params["w"], parameter.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["epochs", "learning_rate", "batch_tokens", "patience"])
def test_settings_must_be_above_zero(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be above 0"):
        TrainConfig(**{name: 0})


def test_the_retain_set_keeps_it_silent(cloud: Cloud, stage: Stage, tmp_path: Path) -> None:
    """Trained with the base's own replies beside the person's, a plugin diverges less there and still learns."""
    things = ("rain", "tea", "bees", "nails", "roofs", "rivers")
    silent = [Example(Prompt.user(f"Tell of {thing}."), "", "", 12) for thing in things]
    with a_session(cloud.url, tap=TAP) as session:
        tape = record(session, TAP, silent, tmp_path / "retain.tape")
    retain = tape.part([0, 1, 2, 3]), tape.part([4, 5])
    results: dict[float, Result] = {}
    divergences: dict[float, float] = {}
    for weight in (0.0, 1.0):
        plugin = fresh(stage[3])
        trainer = trainer_of(plugin, stage, replace(CONFIG, retain_weight=weight), tmp_path, retain=retain)
        results[weight] = trainer.run()
        # Without a weight it does not know this tape:
        trainer._of[RETAIN_HELD] = Batches(retain[1], trainer.head, context=False)
        divergences[weight] = trainer._divergence(plugin.trained.params)
        assert results[weight].best_loss < results[weight].base_loss * 0.6
    assert divergences[1.0] < 0.7 * divergences[0.0]
    assert results[1.0].retain_divergence == pytest.approx(divergences[1.0])
    assert results[0.0].retain_divergence == 0
