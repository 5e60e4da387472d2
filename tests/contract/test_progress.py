"""The running hash of a reply: pinned, and the same however the ids came."""

from hypothesis import given
from hypothesis import strategies as st

from sideplug.contract.progress import running_hash

ids = st.lists(st.integers(0, 2**31 - 1), max_size=20)


def test_it_is_pinned() -> None:
    assert running_hash([]) == ""
    assert running_hash([7, 258]) == "300f2167b60a0510"


@given(ids, ids)
def test_any_split_gives_the_same(first: list[int], second: list[int]) -> None:
    assert running_hash(second, running_hash(first)) == running_hash(first + second)


@given(ids, st.data())
def test_another_text_has_another(text: list[int], data: st.DataObject) -> None:
    other = data.draw(ids.filter(lambda found: found != text))
    assert running_hash(other) != running_hash(text)
