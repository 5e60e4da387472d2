"""Long work beside the event loop."""

from __future__ import annotations

import asyncio

from sideplug.cloud.aside import Aside


def test_the_pieces_of_users_take_turns() -> None:
    order: list[str] = []

    async def run() -> None:
        aside = Aside()
        pieces = [("many", n) for n in range(4)] + [("one", 0)]
        work = [aside.run(user, lambda user=user, n=n: order.append(f"{user} {n}")) for user, n in pieces]  # type: ignore[misc]
        await asyncio.gather(*work)
        aside.stop()

    asyncio.run(run())
    assert sorted(order) == ["many 0", "many 1", "many 2", "many 3", "one 0"]
    assert order.index("one 0") <= 1, "a second piece of one user comes behind another's first"
