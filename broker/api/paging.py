"""Lists in pages: where one goes on, and the cursors of what was found (pipes-api.md 1.4)."""

from __future__ import annotations

from typing import TypeVar
from uuid import UUID

import msgspec

from broker import ids
from broker.api.schemas import PageQuery
from broker.api.views import ListMetadata, Page
from broker.errors import InvalidRequest

Item = TypeVar("Item")


class Paging(msgspec.Struct, frozen=True):
    """Where a list goes on. *turned*: order `normal`, in which `before` leads to older objects."""

    after: str | None
    before: str | None
    ascending: bool
    most: int
    turned: bool = False

    @classmethod
    def of(cls, query: PageQuery) -> Paging:
        """Read limit, cursors and order; raise `InvalidRequest` for both cursors at once."""
        after, before = query.after, query.before
        if after is not None and before is not None:
            raise InvalidRequest("Give before or after, not both.")
        turned = query.order == "normal"
        if turned:
            after, before = before, after
        return cls(after, before, query.order == "asc", query.limit, turned)

    def cursor(self, prefix: str) -> UUID | None:
        """Return the id to go on from; raise for one that is not of this kind of list."""
        text = self.after or self.before
        if text is None:
            return None
        found = ids.from_wire(prefix, text)
        if found is None:
            raise InvalidRequest("The cursor is not an id of this list.")
        return found

    @property
    def walks_up(self) -> bool:
        """Say whether ids grow along the walk: `before` walks against the order."""
        return self.ascending is (self.before is None)

    def metadata(self, first: str | None, last: str | None, *, more: bool) -> ListMetadata:
        """Return the cursors beside a page from *first* to *last*; *more*: the walk goes on behind it."""
        forward = more if self.before is None else True
        backward = self.after is not None if self.before is None else more
        before, after = first if backward else None, last if forward else None
        return ListMetadata(before=after, after=before) if self.turned else ListMetadata(before=before, after=after)


def page(rows: list[Item], wire_ids: list[str], paging: Paging) -> Page[Item]:
    """Wrap one page; it was fetched with one row more than asked for, to know whether there is another."""
    more = len(rows) > paging.most
    rows, wire_ids = rows[: paging.most], wire_ids[: paging.most]
    if paging.before is not None:
        rows, wire_ids = rows[::-1], wire_ids[::-1]
    first, last = (wire_ids[0], wire_ids[-1]) if wire_ids else (None, None)
    return Page(data=rows, list_metadata=paging.metadata(first, last, more=more))
