"""Training learns, equals torch's AdamW, stops early, and resumes to the very same plugin."""

from pathlib import Path

import numpy as np
import pytest

from sideplug.contract.errors import InputError, PluginError, Stopped
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.plugins import Plugin
from sideplug.readers import Example
from sideplug.training.head import Head, fetch
from sideplug.training.recorder import record, score
from sideplug.training.tape import Tape
from sideplug.training.trainer import CHECKPOINT, GENERAL_HELD, Settings, State, Trainer
from tests.conftest import Cloud, a_session, twin

TAP = Tap((0, 1, 2), 16)
FACTS = {"dog": "Pepper", "tea": "lapsang", "town": "Hamar", "sister": "Katrin", "day": "Thursday", "bank": "Midt"}
TRAIN = [Example(Prompt.user(f"What is my {k}?"), f"Your {k} is {v}.", "") for k, v in FACTS.items()] * 3
HELD = [Example(Prompt.user(f"Say what my {k} is."), f"Your {k} is {v}.", "") for k, v in FACTS.items()]


@pytest.fixture(scope="module")
def stage(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tape, Tape, Head, str]:
    folder = tmp_path_factory.mktemp("tapes")
    with a_session(cloud.url, tap=TAP) as session:
        train = record(session, TAP, TRAIN, folder / "train.tape")
        held = record(session, TAP, HELD, folder / "held.tape")
        whole = np.arange(session.model.vocab, dtype=np.int32)
        return train, held, fetch(session, whole), session.model.fingerprint


def fresh(base: str) -> Plugin:
    return Plugin.new("ladder", base, "tiny", TAP, 24, 64)


SETTINGS = Settings(epochs=12, learning_rate=1e-2, batch_tokens=64, weight_decay=0.01, patience=12)


def test_it_learns_and_the_exact_loss_agrees(stage: tuple[Tape, Tape, Head, str], cloud: Cloud, tmp_path: Path) -> None:
    train, held, head, base = stage
    plugin = fresh(base)
    result = Trainer(plugin, head, train, held, SETTINGS, tmp_path).run()
    assert result.best_loss < result.base_loss * 0.5
    with a_session(cloud.url, plugin) as session:
        judged = score(session, HELD)
        exact_base, exact = judged.base, judged.plugin
    assert -exact_base.mean() == pytest.approx(result.base_loss, rel=0.02)
    assert -exact.mean() == pytest.approx(result.best_loss, rel=0.05)


def test_interrupted_and_resumed_is_the_unbroken_run(stage: tuple[Tape, Tape, Head, str], tmp_path: Path) -> None:
    train, held, head, base = stage
    whole, broken = fresh(base), fresh(base)
    for name in "wb":
        (tmp_path / name).mkdir()
    want = Trainer(whole, head, train, held, SETTINGS, tmp_path / "w").run()
    steps = 0

    def enough() -> bool:
        nonlocal steps
        steps += 1
        return steps % 17 == 0

    trainer = Trainer(broken, head, train, held, SETTINGS, tmp_path / "b")
    stops = 0
    resume = False
    while True:
        try:
            got = trainer.run(resume, wants_stop=enough)
            break
        except Stopped as stopped:
            assert "is kept" in str(stopped)
            stops, resume = stops + 1, True
            trainer = Trainer(broken, head, train, held, SETTINGS, tmp_path / "b")
    assert stops >= 2
    assert (got.best_loss, got.epochs) == (want.best_loss, want.epochs)
    for name, value in whole.params.items():
        np.testing.assert_array_equal(broken.params[name], value)


def test_checkpoints_that_can_not_be_resumed(stage: tuple[Tape, Tape, Head, str], tmp_path: Path) -> None:
    train, held, head, base = stage

    def trainer(**settings: float) -> Trainer:
        return Trainer(fresh(base), head, train, held, Settings(**{**vars(SETTINGS), **settings}), tmp_path)

    with pytest.raises(PluginError, match="there is no checkpoint"):
        trainer().run(resume=True)
    with pytest.raises(Stopped):
        trainer().run(wants_stop=lambda: True)
    with pytest.raises(PluginError, match="another training: settings changed"):
        trainer(learning_rate=1e-3).run(resume=True)
    whole = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PluginError, match="is damaged"):
        trainer().run(resume=True)


def test_early_stop_keeps_the_best_and_never_worse_than_the_base(
    stage: tuple[Tape, Tape, Head, str], tmp_path: Path
) -> None:
    train, held, head, base = stage
    plugin = fresh(base)
    result = Trainer(plugin, head, train, held, Settings(epochs=40, learning_rate=5.0, patience=2), tmp_path).run()
    assert result.epochs < 40
    assert result.best_loss <= result.base_loss
    trainer = Trainer(plugin, head, train, held, SETTINGS, tmp_path)
    assert trainer._held_loss(plugin.trained.params) == pytest.approx(result.best_loss)


@pytest.mark.twin
def test_adamw_equals_torch(stage: tuple[Tape, Tape, Head, str], tmp_path: Path) -> None:
    train, held, head, base = stage
    trainer = Trainer(fresh(base), head, train, held, Settings(learning_rate=0.01, warmup_steps=1, clip=1e9), tmp_path)
    rng = np.random.default_rng(0)
    start = rng.normal(size=(5, 4)).astype(np.float32)
    state = State.new({"w": start.copy()})
    torch = twin("torch")
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimiser = torch.optim.AdamW([parameter], lr=0.01, weight_decay=0.1)
    for step in range(6):
        gradient = rng.normal(size=(5, 4)).astype(np.float32)
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * (1 - step / 6)
        parameter.grad = torch.from_numpy(gradient)
        optimiser.step()
        trainer._adamw(state, {"w": gradient}, 6)
    np.testing.assert_allclose(state.params["w"], parameter.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["epochs", "learning_rate", "batch_tokens"])
def test_settings_must_be_above_zero(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be above 0"):
        Settings(**{name: 0})


def test_general_text_keeps_it_silent(cloud: Cloud, tmp_path: Path) -> None:
    """Trained with the base's own replies beside the person's, a plugin diverges less there and still learns."""
    things = ("rain", "tea", "bees", "nails", "roofs", "rivers")
    silent = [Example(Prompt.user(f"Tell of {thing}."), "", "", 12) for thing in things]
    kinds = {"train": TRAIN, "held": HELD, "general": silent}
    with a_session(cloud.url, tap=TAP) as session:
        tapes = [record(session, TAP, examples, tmp_path / f"{name}.tape") for name, examples in kinds.items()]
        head = fetch(session, np.arange(session.model.vocab, dtype=np.int32))
        base = session.model.fingerprint
    general = tapes[2].part([0, 1, 2, 3]), tapes[2].part([4, 5])
    found = {}
    for weight in (0.0, 1.0):
        settings = Settings(**{**vars(SETTINGS), "general_weight": weight})
        plugin = fresh(base)
        trainer = Trainer(plugin, head, tapes[0], tapes[1], settings, tmp_path, general)
        result = trainer.run()
        trainer._tapes[GENERAL_HELD] = general[1]
        found[weight] = trainer._divergence(plugin.trained.params)
        assert result.best_loss < result.base_loss * 0.6
        assert result.general_divergence == pytest.approx(found[weight] if weight else 0.0)
    assert found[1.0] < 0.7 * found[0.0]
