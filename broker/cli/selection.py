"""Which connections a command means: the filters of pipes-api.md 14.6 as options."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, TypeVar
from uuid import UUID

import msgspec
import rich_click as click
from msgspec import UNSET

from broker import ids
from broker.connections.revocation.operations import ConnectionFilter
from broker.errors import NotFound

Command = TypeVar("Command", bound=Callable[..., Any])


class Time(click.ParamType[datetime]):
    """A moment with its zone, or a day in UTC."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            if len(value) == len("2026-01-01"):
                return datetime.combine(date.fromisoformat(value), time(), UTC)
            moment: datetime = msgspec.convert(value, Annotated[datetime, msgspec.Meta(tz=True)])
        except (ValueError, msgspec.ValidationError):
            self.fail("write 2026-01-31, or 2026-01-31T12:00:00Z with a zone", param, ctx)
        return moment


class Name(click.ParamType[str]):
    """A name that is not empty: an unset variable of a script must not come to mean everybody."""

    name = "NAME"

    def __init__(self, longest: int = 255) -> None:
        self._longest = longest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value:
            self.fail("it is empty", param, ctx)
        if len(value) > self._longest:
            self.fail(f"it has more than {self._longest} characters", param, ctx)
        return str(value)


_OPTIONS = (
    click.option("--provider", type=Name(), metavar="SLUG", help="Of one provider."),
    click.option("--user", type=Name(), metavar="USER", help="Of one user, in every organization."),
    click.option("--organization", type=Name(), metavar="ORG", help="Of one organization; null: of none."),
    click.option("--state", type=click.Choice(["connected", "needs_reauthorization", "disconnected"])),
    click.option("--idle-since", type=Time(), metavar="TIME", help="Without a token handed out since then."),
)


def filters(command: Command) -> Command:
    """Give a command the filters, as `provider`, `user`, `organization`, `state` and `idle_since`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen_by(**given: Any) -> ConnectionFilter:
    """Return the filter that the options of `filters` make."""
    organization = given["organization"]
    return ConnectionFilter(
        provider=given["provider"],
        user_id=given["user"],
        organization_id=UNSET if organization is None else (None if organization == "null" else organization),
        state=given["state"],
        idle_since=given["idle_since"],
    )


def connection_of(text: str) -> UUID:
    """Return the id that a command was given; raise `NotFound` for what is none."""
    found = ids.from_wire(ids.CONNECTION, text)
    if found is None:
        raise NotFound(f"'{text[:64]}' is no connection's id. `penstock connections list` has them.")
    return found
