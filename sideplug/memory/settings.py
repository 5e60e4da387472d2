"""How a memory behaves where it is not certain, as the person has set it; kept with the memory itself.

Test: pytest tests/memory/test_settings.py
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from sideplug.contract.errors import InputError
from sideplug.memory.store import Store
from sideplug.memory.words import words

BASE, ASK, SAY = "base", "ask", "say"
CHOICES = {"doubt": (BASE, ASK), "unknown": (BASE, SAY)}
LEAST, MOST = 0.3, 0.99  # certainty: below, two entries may be equally likely; above, hardly any reply is said
UNTOLD, DECLINED = "You haven't told me that.", "Then I was not told."  # to a question, to a no
OWN = (UNTOLD, DECLINED)  # sentences that are sideplug's, not the person's
MEANT, NEAR = "Did you mean: ", "I am not sure, but you noted: "
_YES = "yes,y,yeah,yep,yes please,yes i did,i did,yes i do,i do,correct,exactly,right,sure,ok,that one,yes that one"
_NO = (
    "no,n,nope,nah,no thanks,no thank you,no i didn't,no i did not,i didn't,i did not,no i don't,no i do not,i don't,"
    "i do not,wrong,that's wrong,not that,not that one,no not that,no not that one,not really,neither,none of that"
)
YES, NO = (frozenset(" ".join(words(each)) for each in some.split(",")) for some in (_YES, _NO))


@dataclass(frozen=True)
class Settings:
    """certain: the certainty above which it says what it was told; None: what sideplug ships with.

    doubt: below that, "base" leaves the reply to the base model, and "ask" asks whether the nearest question was meant.
    unknown: to a question about the person that nothing was told of, "base" leaves the reply to the base model, and
    "say" says UNTOLD. Raises InputError for other values.
    """

    certain: float | None = None
    doubt: str = BASE
    unknown: str = BASE

    def __post_init__(self) -> None:
        if self.certain is not None and not LEAST <= self.certain <= MOST:
            raise InputError(f"a memory's certainty must be from {LEAST} to {MOST}, got {self.certain:g}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name} must be {' or '.join(choices)}, got {str(getattr(self, name))[:40]!r}")

    @property
    def own(self) -> list[str]:
        """Return the sentences of sideplug's own that it may say."""
        return [UNTOLD] * (self.unknown == SAY) + [DECLINED] * (self.doubt == ASK)

    @classmethod
    def of(cls, store: Store) -> Settings:
        """Return a store's settings; one that can't be is as if it was not set."""
        found: dict[str, Any] = {each.name: store.setting(each.name) for each in fields(cls)}
        try:
            found["certain"] = float(found["certain"]) if found["certain"] else None
            return cls(**{name: value for name, value in found.items() if value})
        except (ValueError, InputError):
            return cls()

    def keep(self, store: Store) -> None:
        """Keep them in a store."""
        store.set_setting("certain", "" if self.certain is None else f"{self.certain:g}")
        store.set_setting("doubt", self.doubt)
        store.set_setting("unknown", self.unknown)


def doubts(asked: str, parts: list[str]) -> list[str]:
    """What asks whether a passage is meant, for each of its parts."""
    return [f"{MEANT}{' '.join(asked.split())}" if asked else f"{NEAR}{part}" for part in parts]


def agreed(said: str, answer: str) -> str:
    """Return the question that a person says yes to: `said` asked whether it was meant; else ""."""
    return said.removeprefix(MEANT) if said.startswith(MEANT) and _plain(answer) in YES else ""


def noted(said: str, answer: str) -> str:
    """Return the words of a note that a person says yes to: `said` asked whether they were meant; else ""."""
    return said.removeprefix(NEAR) if said.startswith(NEAR) and _plain(answer) in YES else ""


def declined(said: str, answer: str) -> bool:
    """Return whether a person says no to what `said` asked."""
    return said.startswith((MEANT, NEAR)) and _plain(answer) in NO


def _plain(answer: str) -> str:
    return "" if "?" in answer else " ".join(words(answer))
