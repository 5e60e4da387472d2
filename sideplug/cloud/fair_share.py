"""Fair shares of the engine's time: who has had more of it than the others, and rests until they have caught up.

    used(u)     seconds of the engine that user u has had
    floor       the least used of those who are there; it never falls
    u rests     while used(u) > floor + SLACK_S, and somebody who is not so far ahead has something to run

So a user with nine texts, or with prompts without end, leaves another one half of the machine; and people who talk at
the same pace never rest, since all of them are charged alike. Who comes, or comes back, begins at most CREDIT_S behind
the floor: idleness is not saved up. What somebody is ahead is remembered until the others have caught up, so leaving
and coming again clears no debt. It does not know clocks or works. Test: pytest tests/cloud/test_shares.py
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

SLACK_S = 0.2  # so that a prompt of ordinary length is run at once
CREDIT_S = 0.2


class FairShare:
    """The engine's time by user. Call `resting` before a step, and `spend` behind it."""

    def __init__(self) -> None:
        self._used: dict[str, float] = {}
        self._floor = 0.0

    def spend(self, seconds: float, parts: Mapping[str, float]) -> None:
        """Charge `seconds` to users, in proportion to `parts`."""
        whole = sum(parts.values())
        for user, part in parts.items():
            self._used[user] = self._used.get(user, self._floor) + seconds * part / whole

    def used(self, user: str) -> float:
        """The seconds that a user has had, on the scale of the floor."""
        return self._used.get(user, self._floor)

    def resting(self, running: Collection[str], there: Collection[str]) -> set[str]:
        """Those of the users `running`, who have something to run, who are so far ahead that they rest in this step.

        `there`: those who take part now: `running`, and those whose devices are about to answer. Where all who could
        run are ahead, nobody rests: time that nobody else wants is free.
        """
        present = {*running, *there}
        least = self._floor - CREDIT_S
        for user in present:
            self._used[user] = max(self._used.get(user, least), least)
        self._floor = max(self._floor, min(map(self.used, present), default=self._floor))
        least = self._floor - CREDIT_S
        self._used = {user: used for user, used in self._used.items() if user in present or used > least}
        ahead = {user for user in running if self.used(user) > self._floor + SLACK_S}
        return ahead if len(ahead) < len(set(running)) else set()

    def is_ahead(self, user: str) -> bool:
        """Whether a user has had more than the others by more than the slack."""
        return self.used(user) > self._floor + SLACK_S
