"""The people as users of one strategy: who asks when, in bursts over several workers, and what they were told last."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from tests.bench.faults.asking import Answer, Ask
from tests.bench.faults.channel import Worker
from tests.bench.faults.model import Person, Timing, drawn
from tests.bench.faults.provider import DayProvider

CALLERS, WITHIN = 3, 20.0  # so many callers want a token within so many seconds, at workers of their own
AT_ONCE = 4  # bursts begun at once: more would measure how two cores are shared
MARGIN, SOFT, LATER = 60.0, 240.0, 600.0  # seconds: a token's last ones, those before, and the mean wait after its end


class Tally(msgspec.Struct):
    """What the callers of one strategy were told, in numbers."""

    asked: int = 0
    tokens: int = 0
    tokens_dead: int = 0  # the provider would have refused them that very moment
    unavailable: int = 0
    gone: int = 0


class Crowd:
    """All people, asking one strategy."""

    def __init__(
        self,
        name: str,
        workers: Sequence[Worker],
        people: Sequence[Person],
        provider: DayProvider,
        *,
        seed: int,
        timing: Timing,
        start: float,
    ) -> None:
        self.name, self.workers = name, workers
        self._people: Mapping[int, Person] = {person.number: person for person in people}
        self._provider, self._seed, self._timing = provider, seed, timing
        self._due = [(self._next(person.number, start, person.left), person.number) for person in people]
        heapq.heapify(self._due)
        self._places = asyncio.Semaphore(AT_ONCE)
        self.last: dict[int, Answer] = {}
        self.tally = Tally()

    async def until(self, now: float) -> None:
        """Let everybody ask whose time has come by *now*, virtual epoch seconds."""
        numbers = []
        while self._due and self._due[0][0] <= now:
            numbers.append(heapq.heappop(self._due)[1])
        await asyncio.gather(*(self._visit(number, now) for number in numbers))

    async def everybody(self, numbers: Iterable[int]) -> None:
        """Let each of these ask once, alone."""
        await asyncio.gather(*(self._alone(number) for number in numbers))

    @property
    def unsettled(self) -> list[int]:
        """Return who was told last to ask again."""
        return [number for number, answer in self.last.items() if answer.status == "unavailable"]

    async def _visit(self, number: int, now: float) -> None:
        delays = [WITHIN * drawn(self._seed, "after", number, now, caller) for caller in range(1, CALLERS)]
        async with self._places:
            others = [
                asyncio.create_task(self._ask(number, now, caller, delay)) for caller, delay in enumerate(delays, 1)
            ]
            answers = [await self._ask(number, now, 0, 0.0)]
        answers += await asyncio.gather(*others)
        answer = self.last[number] = max(answers, key=lambda one: (one.status == "token", one.expires_in))
        if answer.status == "token":
            heapq.heappush(self._due, (self._next(number, now, answer.expires_in), number))
        elif answer.status == "unavailable":  # official clients would ask again within seconds: at the next step
            heapq.heappush(self._due, (now + 1.0, number))

    async def _alone(self, number: int) -> None:
        async with self._places:
            self.last[number] = await self._ask(number, 0.0, 0, 0.0)

    async def _ask(self, number: int, now: float, caller: int, delay: float) -> Answer:
        person = self._people[number]
        worker = self.workers[int(len(self.workers) * drawn(self._seed, "worker", number, now, caller))]
        wish = Ask(number, person.provider.slug, person.user_id, self._timing.of(delay))
        answer = msgspec.convert(await worker.order("ask", wish), Answer)
        self.tally.asked += 1
        if answer.status == "token":
            self.tally.tokens += 1
            self.tally.tokens_dead += not self._provider.lives(answer.access_token)
        elif answer.status == "unavailable":
            self.tally.unavailable += 1
        else:
            self.tally.gone += 1
        return answer

    def _next(self, number: int, now: float, left: float) -> float:
        """Return when somebody next needs the token: half of the time shortly before its end, else some time after."""
        chance = drawn(self._seed, "early", number, now)
        if chance < 0.5:
            return now + max(30.0, left - MARGIN - 2 * chance * SOFT)
        return now + max(30.0, left - MARGIN - LATER * math.log(2 - 2 * chance))
