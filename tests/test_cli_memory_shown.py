"""What a memory tells of its entries: days, a correction that is a note, wrong answers; and what stays beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Cloud, Run
from tests.memory.test_part import KEY
from tests.test_cli import sentence
from tests.test_cli_memory import BEES, PAIR, go, plugin

__all__ = ["go", "plugin"]  # fixtures


def test_a_list_tells_days_and_how_long_a_note_is(go: Run, tmp_path: Path) -> None:
    go("remember", *PAIR, "--date", "2024-05-03")
    go("remember", "notes")
    go("remember", "Lunch with Olu. She wants the ladder back.", "--date", "2024-05-04")
    assert go("memory", "list").stdout.splitlines() == [
        "     1  'Who sings?' → 'Anna.'  (2024-05-03)",
        "     2  notes/bees.md:1, 2 sentences: 'Our bees are well. …'",
        "     3  notes/in/roof.txt:1: 'The roof leaks.'",
        "     4  2 sentences: 'Lunch with Olu. …'  (2024-05-04)",
    ]


def test_a_correction_that_is_told_as_a_note_is_named(go: Run) -> None:
    """With what ends it, and in the JSON; a note about something else is told in silence."""
    for name in ("p", "q"):
        go("remember", "--question", "What is my combination?", "--reply", "1234.", "--plugin", name)
    done = go("remember", "My combination is 4471.")
    assert done.stderr.splitlines() == [
        "entry 2 may contradict entry 1, 'What is my combination?' → '1234.': both hold; "
        "sideplug memory edit 1 --reply TEXT corrects it, sideplug memory forget 1 ends it"
    ]
    assert json.loads(go("remember", "My combination is 4471.", "--json", "--plugin", "q").stdout)["doubtful"] == [1]
    assert go("remember", BEES[1]).stderr == ""


def test_days_survive_an_export(go: Run, tmp_path: Path) -> None:
    """Of pairs and notes; the same words about two days stay two entries, in the folder that is told them again."""
    go("remember", *PAIR, "--date", "2024-05-03")
    for day in ("2024-05-03", "2024-05-04"):
        assert go("remember", "We went swimming.", "--date", day).stdout.startswith("p remembers 1 more entry;")
    go("remember", BEES[1])
    assert go("memory", "export", "told.jsonl").returncode == 0
    assert json.loads((tmp_path / "told.jsonl").read_text("utf-8").splitlines()[0])["date"] == "2024-05-03"
    again = go("remember", "told.jsonl", "--plugin", "q", "--date", "2024-05-09")
    assert (again.returncode, "not used" in again.stderr) == (0, False), again.stderr
    days = [
        (each["output"], each["date"]) for each in json.loads(go("memory", "list", "--json", "--plugin", "q").stdout)
    ]
    swimming = [("We went swimming.", day) for day in ("2024-05-03", "2024-05-04")]
    assert days == [("Anna.", "2024-05-03"), *swimming, (BEES[1], "2024-05-09")]
    assert go("memory", "export", "-", "--plugin", "q").stdout.count('"date"') == 4
    assert go("remember", "told.jsonl", "--plugin", "q").stdout.startswith("q remembers 0 more entries, 4 were known")


@pytest.mark.parametrize("day", ["2024-5-3", "20240503", "3 May 2024", "2024-02-30"])
def test_a_day_that_is_none_is_refused(go: Run, tmp_path: Path, day: str) -> None:
    sentence(go("remember", BEES[1], "--date", day), 2, f"a date must be a day, YYYY-MM-DD, got '{day}'")
    assert not (tmp_path / "p").exists()


def test_the_curve_names_what_counts_as_wrong(go: Run, plugin: Path, tmp_path: Path) -> None:
    """Ten of them, and how many more; the JSON has all."""
    lines = [{"instruction": f"{KEY.question}{'?' * n}", "output": "In the oven."} for n in range(12)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines), "utf-8")
    shown = go("gate", "curve", "--data", "asked.jsonl").stdout.splitlines()
    start = shown.index("counted as wrong, above these certainties:")
    assert len(shown) == start + 12
    assert shown[start + 1] == f"100.0% said    '{KEY.question}' → '{KEY.reply}'"
    assert shown[-1] == "and 2 more; --json has all"
    wrong = json.loads(go("gate", "curve", "--data", "asked.jsonl", "--json").stdout)["wrong"]
    assert {each["question"] for each in wrong} == {each["instruction"] for each in lines}
    assert wrong[0] == {
        "question": KEY.question,
        "text": KEY.reply,
        "entry": 1,
        "certainty": pytest.approx(1),
        "is_said": True,
    }


def test_nothing_is_trained_again_where_nothing_was_trained(go: Run, plugin: Path) -> None:
    """The entry is forgotten, and it is no error; alone it is the same sentence."""
    nothing = "sideplug: p has no trained part: there is nothing to train again\n"
    done = go("memory", "forget", 1, "--retrain")
    assert (done.returncode, done.stderr) == (0, nothing)
    assert done.stdout == f"forgotten: '{KEY.question}' → '{KEY.reply}'\n"
    sentence(go("memory", "show", 1), 2, "the memory has no entry 1")
    alone = go("memory", "forget", "--retrain")
    assert (alone.returncode, alone.stderr, alone.stdout) == (0, nothing, "")
    sentence(go("memory", "forget", "--retrain", "--plugin", "none"), 2, "there is no plugin in none")


def test_training_says_that_a_memory_stays(go: Run, plugin: Path, cloud: Cloud, tmp_path: Path) -> None:
    lines = [{"instruction": f"What is number {n}?", "output": f"It is {n}."} for n in range(4)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines), "utf-8")
    how = ["--cloud", cloud.url, "--epochs", "1", "--retain-weight", "0", "--no-remember"]
    done = go("train", "data.jsonl", "--out", "p", *how)
    assert done.returncode == 0, done.stderr
    assert "what p remembers (4 entries) stays beside the new part" in done.stderr.splitlines()
    new = go("train", "data.jsonl", "--out", "q", *how)
    assert (new.returncode, "stays beside" in new.stderr) == (0, False), new.stderr
    assert len(json.loads(go("memory", "list", "--json").stdout)) == 4


def test_two_devices_become_one(run: Run, tmp_path: Path) -> None:
    nowhere = ["--cloud", "ws://127.0.0.1:9"]
    phone, laptop, file = tmp_path / "phone", tmp_path / "laptop", tmp_path / "phone.sideplug"
    for device, told in ((phone, "In the tin."), (laptop, "In the shed.")):
        run("remember", "--question", "Where are the nails?", "--reply", told, "--plugin", device, *nowhere)
    run("remember", "Ines waters row two.", "--plugin", phone, *nowhere)
    assert run("plugin", "export", phone, file).returncode == 0
    sentence(run("plugin", "import", file, laptop), 2, "is not empty: give another folder, or --merge")
    done = run("plugin", "import", file, laptop, "--merge")
    assert done.returncode == 0, done.stderr
    assert f"{laptop} remembers 2 more entries, 0 were known" in done.stdout
    assert "sideplug memory restore" in done.stderr
    assert "0 more entries, 2 were known" in run("plugin", "import", file, laptop, "--merge").stdout
    assert run("plugin", "import", file, tmp_path / "new", "--merge").returncode == 0
