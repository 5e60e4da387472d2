"""The rivals' devices on a tiny model: what each adds to the base, and that it adds nothing at its zero."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psutil", reason="pip install 'sideplug[bench]'")
torch = pytest.importorskip("torch", reason="the twin needs torch: make test-twins")
pytest.importorskip("transformers", reason="the twin needs transformers: make test-twins")
pytest.importorskip("bm25s", reason="pip install 'sideplug[bench]'")
pytestmark = pytest.mark.twin

from sideplug.bench.devices import hf, knn, ours, retrieval, steer  # noqa: E402
from sideplug.bench.nearest import Nearest  # noqa: E402
from sideplug.bench.parts.rivals import Settings, judge, summary  # noqa: E402
from sideplug.bench.prompts import example_record  # noqa: E402
from sideplug.bench.systems import NEAREST  # noqa: E402
from sideplug.bench.tasks import write_examples  # noqa: E402
from sideplug.contract.text import Prompt  # noqa: E402
from sideplug.readers import Example  # noqa: E402
from tests.conftest import Cloud, a_plugin  # noqa: E402

HAD = [
    Example(Prompt(text=""), "The river was high that spring and the mill stood still.", ""),
    Example(Prompt.user("Is it far?"), "It is as far as your feet are tired.", ""),
    Example(Prompt(text=""), "Bring nails, honey and tea, said the old man.", ""),
]
ASKED = [
    Example(Prompt(text="The mill"), " stood still, and Anna laughed.", ""),
    Example(Prompt.user("How far is it?"), "As far as the bridge.", ""),
    Example(Prompt(text=""), "Anna wrote to her brother.", ""),
]
RECORDS = [example_record(example) for example in ASKED]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("person") / "examples.jsonl"
    write_examples(HAD, file)
    return file


@pytest.fixture(scope="module")
def base(tiny: Path) -> list[list[float]]:
    return hf.make(str(tiny)).losses(RECORDS)


def near(losses: list[list[float]], others: list[list[float]]) -> bool:
    return all(a == pytest.approx(b, abs=1e-3) for a, b in zip(losses, others, strict=True))


def test_a_text_is_read_on_as_in_one_pass(tiny: Path, base: list[list[float]]) -> None:
    device = hf.make(str(tiny))
    for example, losses in zip(ASKED, base, strict=True):
        prompt, reply = device.tokenizer.encode_example(example.prompt, example.reply)
        ids = torch.tensor([prompt + reply])
        with torch.inference_mode():
            logits = device.lm(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        whole = torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="none")
        assert losses == pytest.approx(whole.tolist(), abs=1e-3)


def test_the_likeliest_tokens_are_drawn_from(tiny: Path) -> None:
    logits, noise = torch.log(torch.tensor([0.05, 0.6, 0.3, 0.05])), torch.Generator().manual_seed(0)
    assert hf.choose(logits, 0.0, 0.5, noise) == 1
    assert {hf.choose(logits, 1.0, 0.5, noise) for _ in range(50)} == {1}
    assert {hf.choose(logits, 1.0, 0.8, noise) for _ in range(99)} == {1, 2}
    assert {hf.choose(logits, 1.0, 1.0, noise) for _ in range(199)} == {0, 1, 2, 3}


def test_a_store_of_what_followed(tiny: Path, examples: Path, base: list[list[float]]) -> None:
    assert near(knn.make(str(tiny), str(examples), share=0.0, heat=0.03).losses(RECORDS), base)
    known = [example_record(example) for example in HAD]
    plain = hf.make(str(tiny)).losses(known)
    device = knn.make(str(tiny), str(examples), share=0.5, heat=0.001)
    # At its very own states the store knows what followed: half of the probability at least.
    assert max(max(nats) for nats in device.losses(known)) <= -float(torch.log(torch.tensor(0.5))) + 1e-3
    assert max(max(nats) for nats in plain) > 2
    with torch.inference_mode():
        reading = device.reading({"text": "The mill"}, device.tokenizer.encode(Prompt(text="The mill")))
    assert float(reading.last_V.exp().sum()) == pytest.approx(1, abs=1e-4)


def test_steering_is_the_base_at_nought_and_the_examples_in_the_prompt_at_one(
    tiny: Path, examples: Path, base: list[list[float]]
) -> None:
    assert near(steer.make(str(tiny), str(examples), 2, weight=0.0).losses(RECORDS), base)
    whole = steer.make(str(tiny), str(examples), 2, weight=1.0).losses(RECORDS)
    nearest = Nearest(HAD, 2)
    informed = [{"prompt": nearest.before(e.prompt).to_json(), "reply": e.reply} for e in ASKED[:2]]
    assert near(whole[:2], hf.make(str(tiny)).losses(informed))
    assert not near(whole, base)


def test_settings_are_judged_as_the_devices_judge(tiny: Path, examples: Path, base: list[list[float]]) -> None:
    settings = Settings(shares=(0.1,), heats=(0.03, 0.3), weights=(0.0, 1.5))
    found = judge(hf.make(str(tiny)), ("somebody", HAD, ASKED), settings)
    assert list(found) == [
        "knn share=0.1 heat=0.03",
        "knn share=0.1 heat=0.3",
        "steer weight=0.0",
        "steer weight=1.5",
    ]
    expected = {
        "knn share=0.1 heat=0.03": knn.make(str(tiny), str(examples), share=0.1, heat=0.03).losses(RECORDS),
        "steer weight=0.0": base,
        "steer weight=1.5": steer.make(str(tiny), str(examples), NEAREST, weight=1.5).losses(RECORDS),
    }
    count = sum(map(len, base))
    for name, losses in expected.items():
        assert found[name] == pytest.approx((sum(map(sum, losses)) - sum(map(sum, base))) / count, abs=1e-3)
    best = summary({"mean": found})
    assert len(best) == 2
    assert {line.split()[0] for line in best} == {"knn", "steer"}


def test_each_rival_writes_a_reply(tiny: Path, examples: Path) -> None:
    for device in (
        knn.make(str(tiny), str(examples), share=0.1, heat=0.03),
        steer.make(str(tiny), str(examples), 2, weight=1.0),
    ):
        told = device.reply(ASKED[0].prompt.to_json(), 6, 0.7, seed=1, top_p=0.95)
        assert told["text"]
        assert told == {
            **device.reply(ASKED[0].prompt.to_json(), 6, 0.7, seed=1, top_p=0.95),
            "times_s": told["times_s"],
        }


def test_the_nearest_examples_come_last() -> None:
    nearest = Nearest(HAD, 2)
    assert nearest.of(Prompt(text="the mill by the river"))[-1] == HAD[0]
    assert nearest.of(Prompt(text="")) == HAD[-2:]  # nothing to be near to: the latest
    messages = nearest.before(Prompt.user("honey and tea?")).messages or ()
    assert messages[-2]["content"] == HAD[2].reply
    assert messages[-1]["content"] == "honey and tea?"


def test_examples_with_a_plugin_are_both(tiny: Path, cloud: Cloud, examples: Path, tmp_path: Path) -> None:
    plugin = a_plugin(cloud.base.fingerprint)
    plugin.save(tmp_path / "plugin")
    both = retrieval.make(cloud.url, str(examples), 2, str(tmp_path / "plugin"))
    alone = ours.make(cloud.url, str(tmp_path / "plugin"))
    informed = [{"prompt": Nearest(HAD, 2).before(e.prompt).to_json(), "reply": e.reply} for e in ASKED]
    assert both.losses(RECORDS) == alone.losses(informed)
    assert both.losses(RECORDS) != retrieval.make(cloud.url, str(examples), 2).losses(RECORDS)
    told: dict[str, Any] = both.reply(ASKED[0].prompt.to_json(), 6, 0.7, seed=1, top_p=0.9)
    assert json.dumps(told)
    assert told["tokens"] > 0


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of peft, about transformers
def test_an_adapter_goes_on_from_another(tiny: Path, examples: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the twin needs peft: make test-twins")
    from sideplug.bench.rivals.lora_training import train

    first, second = tmp_path / "others", tmp_path / "person"
    train(str(tiny), examples, first, 1, 1e-2, None)
    kept = train(str(tiny), examples, second, 1, 0.0, first)  # learns nothing: what was before stays
    assert kept["epochs"] == 0
    told = [hf.make(str(tiny), str(adapter)).losses(RECORDS) for adapter in (first, second)]
    assert near(*told)
    assert not near(told[0], hf.make(str(tiny)).losses(RECORDS))
