"""`penstock restore`: what to say after the database was restored, or another server took over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from broker.api.restore import confirmation_view, release_view, restore_view
from broker.api.services import Services
from broker.cli.bulk import note_option
from broker.cli.common import as_json as json_option
from broker.cli.common import environment as environment_option
from broker.cli.common import operator, with_services
from broker.cli.common import yes as yes_option
from broker.cli.output import progress_bar, say, show_facts, show_json
from broker.cli.selection import Name, connection_of
from broker.connections.refresh.restore import Chosen, Confirmed, Evidence, Released, evidence_of

_PAGE = 100


@click.group()
def restore() -> None:
    """Confirm a restored database, and let go of what is held for it. deploy/runbook.md says when to do what."""


@restore.command()
@environment_option
@json_option
def status(environment: str, as_json: bool) -> None:
    """Say whether refreshes are sealed, why, and how many connections wait for an operator's word."""
    found = with_services(lambda use: use.restores.status(environment))
    view = restore_view(found)
    if as_json:
        show_json(view)
        return
    facts = {name.replace("_", " "): value for name, value in view.items() if name not in ("object", "reason")}
    show_facts(list(facts.items()))
    if found.sealed_since:
        say("Still-valid tokens are served; nothing is refreshed. `penstock restore confirm` goes on from here.")


# --- confirm --------------------------------------------------------------------------------------------------------


@restore.command()
@click.option("--nothing-lost", is_flag=True, help="A synchronous standby took over, or all was moved while stopped.")
@click.option(
    "--evidence",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An environment's audit export past the restored database's end; may be given for each.",
)
@environment_option
@note_option
@yes_option
@json_option
def confirm(
    nothing_lost: bool, evidence: tuple[Path, ...], environment: str, note: str | None, yes: bool, as_json: bool
) -> None:
    """Confirm the database, for the whole deployment, and let refreshes be sent again.

    Where something may be lost, connections whose provider ends a grant for an old refresh token are held: their
    access tokens are served, and their refresh tokens sent once `penstock restore release` says so.
    """
    if nothing_lost and evidence:
        raise click.UsageError("Where nothing was lost, there is nothing to show by evidence.")

    async def act(use: Services) -> dict[str, Any]:
        caller, counted = operator(environment), Confirmed(held=0, going_on=0)
        if nothing_lost and yes:
            await use.restores.nothing_lost(caller, note)
        elif not nothing_lost:
            shown = await _read(use, evidence)
            counted = await (use.restores.confirm(caller, shown, note) if yes else use.restores.count(shown))
        return confirmation_view(await use.restores.status(environment), counted, dry_run=not yes)

    view = with_services(act)
    if as_json:
        show_json(view)
        return
    counts = view["counts"]
    if not nothing_lost:
        say(f"{counts['held']} connections {'are' if yes else 'would be'} held, {counts['going_on']} go on.")
    say("Confirmed: refreshes are sent again." if yes else "Nothing was changed; --yes does it.")


async def _read(use: Services, evidence: tuple[Path, ...]) -> list[Evidence]:
    points = await use.restores.recovery_points() if evidence else []
    found = []
    for path in evidence:
        with path.open("rb") as lines:
            found.append(evidence_of(lines, points))
    return found


# --- release --------------------------------------------------------------------------------------------------------


@restore.command()
@click.option("--provider", type=Name(), metavar="SLUG", help="Only of one provider.")
@click.option("--connection", "connection_id", metavar="ID", help="Only one connection.")
@click.option("--anyway", is_flag=True, help="Also where the provider refuses the access token, or does not answer.")
@environment_option
@yes_option
@json_option
def release(
    provider: str | None, connection_id: str | None, anyway: bool, environment: str, yes: bool, as_json: bool
) -> None:
    """Probe held connections' access tokens, and let the refresh tokens of those that live be sent once.

    Where the access token has ended, or the provider has nothing to ask, the refresh token is all there is: it is sent.
    """
    chosen = Chosen(provider=provider, connection_id=connection_of(connection_id) if connection_id else None)

    async def act(use: Services) -> dict[str, Any]:
        matched = await use.restores.held(environment, chosen)
        if not yes:
            return release_view(matched, [], dry_run=True)
        return release_view(matched, await _released(use, environment, chosen, matched, anyway=anyway))

    view = with_services(act)
    if as_json:
        show_json(view)
        return
    counts = view["counts"]
    if not yes:
        say(f"{counts['matched']} connections are held. Nothing was changed; --yes probes and releases them.")
        return
    for one in view["held"]:
        say(f"{one['id']} stays held: {_WHY[one['reason']]}")
    say(f"{counts['released']} released, {counts['held']} still held.")


_WHY = {
    "refused": "the provider refuses its access token, so its refresh token is likely spent.",
    "no_answer": "the provider did not say whether its access token lives; try again later.",
    "unreadable": "its tokens cannot be opened; `penstock doctor` says more.",
}


async def _released(use: Services, environment: str, chosen: Chosen, matched: int, *, anyway: bool) -> list[Released]:
    done: list[Released] = []
    with progress_bar("Connections", matched) as progress:
        while True:
            after = done[-1].connection_id if done else None
            page = await use.restores.release(operator(environment), chosen, anyway=anyway, after=after, most=_PAGE)
            done += page
            progress(len(done))
            if len(page) < _PAGE:
                return done
