"""`penstock connections` and `users`: what an operator sees, and the groups of what an operator does."""

from __future__ import annotations

from typing import Any

import rich_click as click

from broker.api.admin_views import connection_view, detailed_view
from broker.api.services import Services
from broker.cli.bulk import offboard, reauthorize, revoke
from broker.cli.common import as_json as json_option
from broker.cli.common import environment as environment_option
from broker.cli.common import with_services
from broker.cli.output import hint, say, show_facts, show_json, show_table
from broker.cli.selection import chosen_by, connection_of, filters
from broker.connections.revocation.operations import ConnectionFilter

_PAGE = 500


@click.group()
def connections() -> None:
    """List connections, and end or renew one or thousands."""


@click.group()
def users() -> None:
    """What concerns a user as a whole."""


connections.add_command(reauthorize)
connections.add_command(revoke)
users.add_command(offboard)


@connections.command("list")
@filters
@environment_option
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="At most so many, newest first.")
@json_option
def list_connections(environment: str, limit: int, as_json: bool, **given: Any) -> None:
    """List connections, ended ones included; filters that are left out do not restrict."""
    found = with_services(lambda use: _listed(use, environment, chosen_by(**given), limit + 1))
    shown, more = found[:limit], len(found) > limit
    if as_json:
        show_json(shown)
    else:
        columns = ("id", "provider", "user", "organization", "state", "reason", "account", "last used")
        show_table(columns, [_row(view) for view in shown])
    if more:
        hint(f"There are more than these {limit}; filter, or raise --limit.")


async def _listed(use: Services, environment: str, chosen: ConnectionFilter, most: int) -> list[dict[str, Any]]:
    views: list[dict[str, Any]] = []
    last = None
    while len(views) < most:
        wanted = min(_PAGE, most - len(views))
        page = await use.directory.page(environment, chosen, after=last, ascending=False, most=wanted)
        views += [connection_view(seen, use) for seen in page]
        if len(page) < wanted:
            break
        last = page[-1].connection.id
    return views


def _row(view: dict[str, Any]) -> tuple[object, ...]:
    owner = view["user_id"] or "(the organization)"
    account = view["account"]["name"] or view["account"]["id"] if view["account"] else None
    return (
        view["id"],
        view["provider"],
        owner,
        view["organization_id"],
        view["state"],
        view["reason"],
        account,
        view["last_used_at"],
    )


@connections.command()
@click.argument("connection_id", metavar="ID")
@environment_option
@json_option
def show(connection_id: str, environment: str, as_json: bool) -> None:
    """Show one connection with its timeline."""
    wanted = connection_of(connection_id)
    view = with_services(lambda use: detailed_view(use, environment, wanted))
    if as_json:
        show_json(view)
        return
    timeline = view.pop("timeline")
    show_facts([(name.replace("_", " "), _fact(value)) for name, value in view.items() if name != "object"])
    say("")
    rows = [(at["at"], at["event"], at["outcome"], _actor(at["actor"]), at["reason"], at["purpose"]) for at in timeline]
    show_table(("at", "event", "outcome", "by", "reason", "purpose"), rows)


def _fact(value: Any) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items() if part is not None)
    return value


def _actor(actor: dict[str, Any]) -> str:
    return f"{actor['type']} {actor['id']}" if actor["id"] else str(actor["type"])
