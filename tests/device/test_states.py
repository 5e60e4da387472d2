"""Hidden states over the wire are the model's own, as it writes and of a given text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sideplug.cloud.model.base import Chunk
from sideplug.contract.errors import InputError
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.device import states as hidden
from tests.conftest import Cloud

PROMPT = Prompt(ids=tuple(range(5, 25)))


def states(cloud: Cloud, ids: list[int], start: int, layers: Any) -> np.ndarray:
    """(T, K, D) of the position before `start` and of those after it, by the model itself: a chunk, then one by one."""
    model = cloud.engine.model
    cache = model.new_cache(len(ids))
    rows = [model.forward([Chunk(ids[:start], cache)], layers).tapped([start - 1], layers)]
    for token in ids[start:-1]:
        rows.append(model.forward([Chunk([token], cache)], layers).tapped([0], layers))
    return np.concatenate(rows)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=2)])
def test_raw_states_as_it_writes(cloud: Cloud, sampling: Sampling) -> None:
    with hidden.listen(cloud.url, layers=[0, 2]) as stream:
        steps = list(stream.generate(PROMPT, 12, sampling))
        assert (stream.layers, stream.model.blocks) == ((0, 2), 2)
    assert [step.position for step in steps] == list(range(20, 20 + len(steps)))
    ids = [*PROMPT.ids, *(step.token for step in steps)]  # type: ignore[misc]
    want = states(cloud, ids, 20, (0, 2)).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(np.stack([step.states for step in steps]), want)


def test_every_layer_and_projected_ones(cloud: Cloud) -> None:
    with hidden.listen(cloud.url) as stream:
        steps = list(stream.generate(PROMPT, 6))
    assert steps[0].states.shape == (3, 64)
    with hidden.listen(cloud.url, rank=8, codec="fp16") as stream:
        projected = list(stream.generate(PROMPT, 6))
    assert [step.token for step in steps] == [step.token for step in projected]
    ids = [*PROMPT.ids, *(step.token for step in steps)]  # type: ignore[misc]
    tap = Tap((0, 1, 2), 8, 0, "fp16")
    rows = states(cloud, ids, 20, (0, 1, 2))[:, None]  # one by one, as they are asked
    want = np.concatenate([tap.decode(*tap.encode(row)) for row in rows])
    np.testing.assert_array_equal(np.stack([step.states for step in projected]), want)


def test_the_text_is_the_models_own(cloud: Cloud, tmp_path: Path) -> None:
    from tests.conftest import a_session

    with a_session(cloud.url) as session:
        want = "".join(piece.text for piece in session.generate(Prompt.user("Is it far?"), 20))
    with hidden.listen(cloud.url, rank=16) as stream:
        assert "".join(step.text for step in stream.generate("Is it far?", 20)) == want


def test_a_text_that_is_given(cloud: Cloud) -> None:
    with hidden.listen(cloud.url, layers=[1, 2]) as stream:
        read = stream.read("Is it far?", "As far as your feet are tired.")
    assert read.states.shape == (len(read.ids), 2, 64)
    np.testing.assert_array_equal(read.states[:, 1], read.z)  # layer N is z


def test_what_cannot_be_tapped(cloud: Cloud) -> None:
    with pytest.raises(InputError, match="layers must be 0 to 2"), hidden.listen(cloud.url, layers=[3]):
        pass
    with pytest.raises(InputError, match="give a rank"), hidden.listen(cloud.url, codec="fp16"):
        pass
