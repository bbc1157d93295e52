"""Forced reauthorization, revocation and offboarding: one connection or all that a filter selects, dry run first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec
import rich_click as click

from broker import ids
from broker.api.admin_views import connection_view, operation_view
from broker.api.services import Services
from broker.cli.common import Store, operator, with_services_and_store
from broker.cli.common import as_json as json_option
from broker.cli.common import environment as environment_option
from broker.cli.common import yes as yes_option
from broker.cli.output import hint, progress_bar, say, show_json
from broker.cli.selection import Name, chosen_by, connection_of, filters
from broker.connections.model import Connection
from broker.connections.revocation.operations import ConnectionFilter, Operation
from broker.errors import BrokerError, InvalidState, NotFound

Kind = Literal["reauthorize", "revoke", "offboard"]

_WOULD = {"reauthorize": "need a new consent", "revoke": "be ended", "offboard": "be ended"}
_DONE = {"reauthorize": "need a new consent", "revoke": "ended", "offboard": "ended"}
_PAUSE = 0.25  # seconds between looks at a queue that somebody else works off
_PATIENCE = 300.0  # seconds without progress before --wait gives up waiting

note_option = click.option("--note", type=Name(200), metavar="TEXT", help="Why, for the audit record.")
resume_option = click.option("--resume", metavar="OPERATION", help="Go on with an operation that was stopped.")
wait_option = click.option("--wait", is_flag=True, help="Work off the revocations at the provider here, to the end.")


class RevocationsPending(BrokerError):
    """Some revocations at the provider are not done; the server goes on trying for a day."""

    code = "revocations_pending"


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator asked for."""

    kind: Kind
    environment: str
    yes: bool
    note: str | None
    as_json: bool
    wait: bool = False


# --- the commands -----------------------------------------------------------------------------------------------


@click.command()
@click.argument("connection_id", metavar="[ID]", required=False)
@filters
@environment_option
@note_option
@resume_option
@yes_option
@json_option
def reauthorize(
    connection_id: str | None,
    environment: str,
    note: str | None,
    resume: str | None,
    yes: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Demand fresh consent: of one connection, or of all that filters select.

    From then on no token of them is handed out until their owner authorizes again.
    """
    act = Act(kind="reauthorize", environment=environment, yes=yes, note=note, as_json=as_json)
    _run(act, connection_id, chosen_by(**given), resume)


@click.command()
@click.argument("connection_id", metavar="[ID]", required=False)
@filters
@environment_option
@note_option
@resume_option
@wait_option
@yes_option
@json_option
def revoke(
    connection_id: str | None,
    environment: str,
    note: str | None,
    resume: str | None,
    wait: bool,
    yes: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """End connections: one, or all that filters select; here at once, at the provider by the server's worker."""
    act = Act(kind="revoke", environment=environment, yes=yes, note=note, as_json=as_json, wait=wait)
    _run(act, connection_id, chosen_by(**given), resume)


@click.command()
@click.argument("user", type=Name())
@environment_option
@note_option
@wait_option
@yes_option
@json_option
def offboard(user: str, environment: str, note: str | None, wait: bool, yes: bool, as_json: bool) -> None:
    """End everything a user has, in every organization; shared connections they made need a new consent."""
    act = Act(kind="offboard", environment=environment, yes=yes, note=note, as_json=as_json, wait=wait)
    with_services_and_store(lambda use, store: _many(use, store, act, ConnectionFilter(user_id=user)))


def _run(act: Act, connection_id: str | None, chosen: ConnectionFilter, resume: str | None) -> None:
    given = [connection_id is not None, not chosen.empty, resume is not None]
    if sum(given) != 1:
        raise click.UsageError("Name one connection, or give filters, or --resume an operation: one of the three.")
    if connection_id is not None:
        with_services_and_store(lambda use, store: _one(use, store, act, connection_id))
    elif resume is not None:
        with_services_and_store(lambda use, store: _resumed(use, store, act, resume))
    else:
        with_services_and_store(lambda use, store: _many(use, store, act, chosen))


# --- one --------------------------------------------------------------------------------------------------------


async def _one(use: Services, store: Store, act: Act, connection_id: str) -> None:
    wanted, caller = connection_of(connection_id), operator(act.environment)
    if act.yes:
        change = use.revoke.force_one if act.kind == "reauthorize" else use.revoke.revoke_one
        await change(caller, wanted, act.note)

        async def pending() -> int:
            now = await use.directory.one(act.environment, wanted, timeline=False)
            return int(now.revocation is not None and now.revocation.status == "pending")

        if act.wait:
            await _work_off(use, store, pending)
    seen = await use.directory.one(act.environment, wanted, timeline=False)
    view = connection_view(seen, use)
    if act.as_json:
        show_json(view)
        return
    whose = f"{view['provider']} of {view['user_id'] or view['organization_id']}"
    if not act.yes:
        say(f"{whose} is {view['state']}. Nothing was changed; --yes does it.")
        return
    say(f"{whose}: {_DONE[act.kind]}.")
    if view["upstream_revocation"]:
        say(f"Revocation at the provider: {view['upstream_revocation']['status']}.")


# --- many -------------------------------------------------------------------------------------------------------


async def _many(use: Services, store: Store, act: Act, chosen: ConnectionFilter) -> None:
    caller = operator(act.environment)
    if not act.yes:
        await _dry_run(use, act, chosen)
        return
    shared = 0
    if act.kind == "offboard" and chosen.user_id is not None:
        shared = await use.revoke.end_membership(caller, chosen.user_id)
    operation = await use.revoke.begin(caller, act.kind, chosen, act.note)
    hint(f"Operation {operation.wire_id}. If this is stopped, a server goes on with it, and so does --resume.")
    await _carried_out(use, store, act, operation, shared)


async def _dry_run(use: Services, act: Act, chosen: ConnectionFilter) -> None:
    matched = await use.revoke.count(operator(act.environment), act.kind, chosen)
    if act.as_json:
        show_json(operation_view(None, act.kind, matched=matched))
        return
    say(f"{matched.matched + matched.skipped} connections match: {matched.matched} would {_WOULD[act.kind]},")
    say(f"{matched.skipped} are so already.")
    if act.kind == "offboard":
        shared = await _established_by(use, act.environment, str(chosen.user_id))
        say(f"{shared} shared connections that {chosen.user_id} made would need a new consent.")
    say("Nothing was changed; --yes does it.")


async def _established_by(use: Services, environment: str, user: str) -> int:
    async with use.database.transaction() as session:
        found = await session.all(Connection, "lock_established_by", environment_id=environment, user_id=user)
    return len(found)


async def _resumed(use: Services, store: Store, act: Act, resume: str) -> None:
    wanted = ids.from_wire(ids.OPERATION, resume)
    if wanted is None:
        raise NotFound(f"'{resume[:64]}' is no operation's id; it begins with op_.")
    operation = await use.revoke.operation(operator(act.environment), wanted)
    kinds = ("reauthorize",) if act.kind == "reauthorize" else ("revoke", "offboard")
    if operation.kind not in kinds:
        raise InvalidState(f"That operation is a {operation.kind}; resume it by the command that began it.")
    await _carried_out(use, store, act, operation, 0)


async def _carried_out(use: Services, store: Store, act: Act, operation: Operation, shared: int) -> None:
    """Do what is left of an operation, and say how it ended."""
    with progress_bar("Connections", operation.matched) as progress:
        progress(operation.done + operation.skipped)
        operation = await use.revoke.run(operation, lambda now: progress(now.done + now.skipped))
    operation = await use.revoke.operation(operation.actor, operation.id)
    if act.wait:

        async def pending() -> int:
            return (await use.revoke.upstream(operation)).pending

        await _work_off(use, store, pending)
    upstream = await use.revoke.upstream(operation)
    if act.as_json:
        show_json(operation_view(operation, operation.kind, upstream=upstream))
        return
    say(f"{operation.done} {_DONE[act.kind]}; {operation.skipped} were so already.")
    if shared:
        say(f"{shared} shared connections need a new consent.")
    if act.kind != "reauthorize":
        say(
            f"At the provider: {upstream.succeeded} revoked, {upstream.pending} pending, {upstream.failed} failed, "
            f"{upstream.unsupported} where it offers no revocation."
        )
        if upstream.pending:
            say("The server's worker does the pending ones; --wait does them here.")


async def _work_off(use: Services, store: Store, pending: Callable[[], Awaitable[int]]) -> None:
    """Work the queue of revocations off until none of ours is pending.

    Where another process has started the embedded database, its worker knows which providers are emulated, so this
    only watches.
    """
    left = total = await pending()
    last_progress = asyncio.get_running_loop().time()
    with progress_bar("Revoking at the provider", total) as progress:
        while left:
            if store.shared or not await use.upstream.run_one():
                await asyncio.sleep(_PAUSE)
            before, left = left, await pending()
            progress(total - left)
            now = asyncio.get_running_loop().time()
            last_progress = now if left < before else last_progress
            if now - last_progress > _PATIENCE:
                raise RevocationsPending(f"{left} revocations are pending; the server goes on trying for a day.")
