"""`penstock brakes`: providers that refuse too much at once, or our credentials; counts first, then the word."""

from __future__ import annotations

import rich_click as click

from broker.api.brakes import BrakeView, ReleaseView, brake_views
from broker.api.services import Services
from broker.cli.bulk import note_option
from broker.cli.common import as_json as json_option
from broker.cli.common import environment as environment_option
from broker.cli.common import operator, with_services
from broker.cli.common import yes as yes_option
from broker.cli.output import say, show_facts, show_json
from broker.cli.selection import Name
from broker.connections.refresh.brakes import Decision
from broker.errors import InvalidState


@click.group()
def brakes() -> None:
    """See which providers are braked, and release one that was suspect."""


@brakes.command("list")
@environment_option
@json_option
def list_brakes(environment: str, as_json: bool) -> None:
    """List providers that are suspect or refuse our credentials, and what to do about each."""
    found = with_services(lambda use: _braked(use, environment))
    if as_json:
        show_json(found)
    elif not found:
        say("No provider is braked.")
    for view in found if not as_json else []:
        _show(view)


async def _braked(use: Services, environment: str) -> list[BrakeView]:
    return [view for braked in await use.brakes.listed(environment) for view in brake_views(braked)]


def _show(view: BrakeView) -> None:
    verdicts = ", ".join(f"{one.connections} {one.reason} ({one.error or 'no code'})" for one in view.verdicts)
    show_facts(
        [
            ("provider", f"{view.provider}, {view.connection_owner}-owned"),
            ("trouble", view.kind),
            ("since", view.since),
            ("refused", f"{view.refused} of {view.refreshes} refreshes" if view.share is not None else None),
            ("said", verdicts or None),
            ("connections", f"{view.connections}, of which {view.unserved} have no token to hand out"),
            ("what", view.what),
            ("to do", view.remedy),
        ]
    )
    say("")


@brakes.command()
@click.argument("slug", type=Name(64))
@click.option("--believe", "decision", flag_value="believe", help="The grants are over: their owners connect again.")
@click.option("--retry", "decision", flag_value="retry", help="It was the provider's mistake: refresh them all again.")
@environment_option
@note_option
@yes_option
@json_option
def release(slug: str, decision: Decision | None, environment: str, note: str | None, yes: bool, as_json: bool) -> None:
    """Release a suspect provider, by one of two decisions about the grants it refused."""
    if decision is None:
        raise click.UsageError("Decide: --believe that the refused grants are over, or --retry them all.")
    word: Decision = decision
    if yes:
        told = with_services(lambda use: _released(use, environment, slug, word, note))
        if as_json:
            show_json(told)
        else:
            become = "need a new consent" if word == "believe" else "are refreshed again"
            say(f"{slug} is released; {told.connections} connections {become}.")
        return
    suspect = with_services(lambda use: _suspect(use, environment, slug))
    if as_json:
        show_json(suspect)
        return
    would = "would need a new consent" if word == "believe" else "would be refreshed again"
    say(f"{sum(view.refused for view in suspect)} connections {would}. Nothing was changed; --yes does it.")


async def _released(use: Services, environment: str, slug: str, decision: Decision, note: str | None) -> ReleaseView:
    concerned = await use.brakes.release(operator(environment), slug, decision, note)
    return ReleaseView(provider=slug, decision=decision, connections=concerned)


async def _suspect(use: Services, environment: str, slug: str) -> list[BrakeView]:
    """Return the suspect integrations of a slug; raise `InvalidState` where none is."""
    found = [one for one in await _braked(use, environment) if one.provider == slug and one.kind == "provider_suspect"]
    if not found:
        raise InvalidState(f"The provider '{slug[:64]}' is not suspect; there is nothing to release.")
    return found
