"""Notices: operators learn 30, 7 and 1 days ahead that grants end for good, once each (reliability.md 3.17)."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from uuid import UUID

import msgspec

from broker.alarm import alarm
from broker.audit import records
from broker.audit.records import Subject
from broker.callers.model import system
from broker.store.postgres import Database

AT_ONCE = 500  # connections in one transaction


class _Ending(msgspec.Struct, frozen=True, kw_only=True):
    """A connection whose grant ends within so many days, and nothing but a new consent puts that off."""

    environment_id: str
    id: UUID
    integration_id: UUID
    slug: str
    user_id: str | None
    organization_id: str | None
    version: int
    days: int

    @property
    def subject(self) -> Subject:
        return Subject(
            connection_id=self.id,
            user_id=self.user_id,
            organization_id=self.organization_id,
            provider=self.slug,
            version_no=self.version,
        )


class Notices:
    """Put each notice on record, and raise one alarm for an integration, however many of its connections end."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self) -> int:
        """Give the notices that are due; return how many."""
        given: Counter[tuple[str, UUID, str]] = Counter()
        nearest: dict[tuple[str, UUID, str], int] = {}
        while batch := await self._batch():
            for one in batch:
                integration = (one.environment_id, one.integration_id, one.slug)
                given[integration] += 1
                nearest[integration] = min(one.days, nearest.get(integration, one.days))
        for integration, count in given.items():
            environment_id, _, slug = integration
            days = nearest[integration]
            alarm("grant_ends_soon", environment_id=environment_id, provider=slug, count=count, reason=f"{days}_days")
        return given.total()

    async def _batch(self) -> list[_Ending]:
        async with self._database.transaction() as session:
            found = await session.all(_Ending, "notice_ends", most=AT_ONCE)
            found.sort(key=_kind)
            for (environment_id, days), several in groupby(found, key=_kind):
                subjects = [one.subject for one in several]
                await records.record(
                    session, system(environment_id), "grant_ends_soon", subjects, reason=f"{days}_days"
                )
        return found


def _kind(one: _Ending) -> tuple[str, int]:
    return one.environment_id, one.days
