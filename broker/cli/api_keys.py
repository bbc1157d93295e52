"""`penstock api-keys`: the keys by which backends call, made, listed and ended by an operator."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import rich_click as click

from broker import ids
from broker.callers.keys import LIFE, ApiKey
from broker.callers.model import DEFAULT_SCOPES, SCOPES
from broker.cli.common import as_json as json_option
from broker.cli.common import environment as environment_option
from broker.cli.common import operator, with_services
from broker.cli.output import hint, say, show_json, show_table
from broker.cli.selection import Name
from broker.connections.wire import timestamp
from broker.errors import NotFound


@click.group("api-keys")
def api_keys() -> None:
    """Make, list and end API keys."""


@api_keys.command()
@click.argument("name", type=Name())
@environment_option
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help="What the key may do; may be given several times. Without it: everything but admin.",
)
@click.option("--days", default=LIFE.days, show_default=True, type=click.IntRange(1, 3650), help="How long it lives.")
@json_option
def create(name: str, environment: str, scopes: tuple[str, ...], days: int, as_json: bool) -> None:
    """Make a key and show it, this once: only a digest of it is kept."""
    made, key = with_services(
        lambda use: use.api_keys.create(
            environment, name, scopes=scopes or DEFAULT_SCOPES, life=timedelta(days=days), actor=operator(environment)
        )
    )
    if as_json:
        show_json({**_shown(made), "key": key.reveal()})
        return
    say(key.reveal())
    hint(f"Keep it now; it is not shown again. Id {made.wire_id}, valid until {made.expires_at:%Y-%m-%d}.")


@api_keys.command("list")
@click.option("--environment", metavar="NAME", help="Of one environment only.")
@json_option
def list_keys(environment: str | None, as_json: bool) -> None:
    """List keys: ids and last characters, never a key."""
    found = with_services(lambda use: use.api_keys.list(environment))
    if as_json:
        show_json([_shown(key) for key in found])
        return
    rows = [
        (key.wire_id, key.environment_id, key.name, f"…{key.last_four}", _state(key), key.last_used_at, key.scopes)
        for key in found
    ]
    show_table(("id", "environment", "name", "key", "state", "last used", "scopes"), rows)


@api_keys.command()
@click.argument("key_id", metavar="ID")
@json_option
def revoke(key_id: str, as_json: bool) -> None:
    """End a key; every server refuses it from the next request on."""
    wanted = ids.from_wire(ids.API_KEY, key_id)
    if wanted is None:
        raise NotFound("There is no such API key. `penstock api-keys list` has the ids; a key itself is none.")
    ended = with_services(lambda use: use.api_keys.revoke(wanted, operator("default")))
    if as_json:
        show_json(_shown(ended))
        return
    say(f"{ended.name} (…{ended.last_four}) is refused from the next request on.")


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at <= datetime.now(UTC) else "valid"


def _shown(key: ApiKey) -> dict[str, object]:
    return {
        "object": "api_key",
        "id": key.wire_id,
        "environment": key.environment_id,
        "name": key.name,
        "last_four": key.last_four,
        "scopes": key.scopes,
        "state": _state(key),
        "created_at": timestamp(key.created_at),
        "expires_at": timestamp(key.expires_at),
        "last_used_at": timestamp(key.last_used_at) if key.last_used_at else None,
        "revoked_at": timestamp(key.revoked_at) if key.revoked_at else None,
    }
