"""How a memory behaves where it is not certain, as the person has set it; kept with the memory itself.

Test: pytest tests/memory/test_settings.py
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from sideplug.contract.errors import InputError
from sideplug.memory.store import Store

BASE, ASK, SAY = "base", "ask", "say"
CHOICES = {"doubt": (BASE, ASK), "unknown": (BASE, SAY)}
LEAST, MOST = 0.3, 0.99  # certainty: below, two entries may be equally likely; above, hardly any reply is said
UNTOLD = "You haven't told me that."
MEANT, NEAR = "Did you mean: ", "I am not sure, but you noted: "
_YES = "yes,y,yeah,yep,yes please,yes i did,i did,correct,exactly,right,sure,ok,that one"
YES = frozenset([*_YES.split(","), "yes, please"])


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
    plain = answer.strip().strip(".!").lower()
    return said.removeprefix(MEANT) if said.startswith(MEANT) and plain in YES else ""
