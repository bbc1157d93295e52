"""`penstock dev`: Penstock with its own PostgreSQL and emulated providers, until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path

import msgspec
import rich_click as click
import uvloop

from broker import ids
from broker.api import development
from broker.api.services import Services
from broker.app import DEFAULT_ENVIRONMENT, create, open_services
from broker.cli.common import operator, run, settings, store_of
from broker.cli.local import PEOPLE, PURPOSES, SCOPES, emulated
from broker.cli.output import say
from broker.cli.server import bound, serving
from broker.connections.integrations import Credentials, NewIntegration
from broker.errors import ConfigurationError, NotFound
from broker.log import configure
from broker.secret import Secret
from broker.settings import Settings
from broker.store.migrate import migrate
from providers.emulator.facts import Facts, ProviderFacts


@click.command()
def dev() -> None:
    """Run everything for trying and developing: PostgreSQL, emulated GitHub and Salesforce, and the server.

    Data, keyring and API key stay in PENSTOCK_HOME (.penstock); the emulated providers begin anew each time. Other
    commands work beside it. Ctrl-C ends it.
    """
    configured = settings()
    if configured.production:
        remedy = "Use `penstock serve`, or set PENSTOCK_ENVIRONMENT=development."
        raise ConfigurationError("PENSTOCK_ENVIRONMENT", "is 'production', which `penstock dev` is not for", remedy)
    configure(configured.log)
    key = configured.bootstrap_api_key or kept_key(configured.home / "api-key")
    configured = msgspec.structs.replace(configured, bootstrap_api_key=key)
    with bound(configured) as listener, store_of(configured) as store:
        run(migrate(store.dsn))
        with contextlib.suppress(click.Abort):
            run(_stay(configured, key, store.dsn, listener), loop_factory=uvloop.new_event_loop)
    say("Stopped.")


def kept_key(path: Path) -> Secret:
    """Return the API key that is kept at *path*, the same at every start; make it when there is none."""
    with contextlib.suppress(FileNotFoundError):
        if kept := path.read_text().strip():
            return Secret(kept)
    key = Secret(ids.random_token("sk_"))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(key.reveal() + "\n")
    return key


async def _stay(configured: Settings, key: Secret, dsn: str, listener: socket.socket) -> None:
    async with emulated(configured) as (mapped, facts):
        async with open_services(mapped, dsn=dsn, pool=2) as use:
            for provider in facts.providers:
                await _integrate(use, provider)
            links = await development.connect_links(use, operator(DEFAULT_ENVIRONMENT), PEOPLE)
        application = create(mapped, dsn=dsn, handlers=development.handlers(DEFAULT_ENVIRONMENT, PEOPLE))
        async with serving(application, listener):
            _print(mapped, key, facts, links)
            await asyncio.Event().wait()


async def _integrate(use: Services, provider: ProviderFacts) -> None:
    """Configure an emulated provider as a real one would be, unless it is configured."""
    caller = operator(DEFAULT_ENVIRONMENT)
    try:
        await use.integrations.get(caller, provider.slug, "user")
    except NotFound:
        secret = Secret(provider.client_secret or "")
        new = NewIntegration(
            provider=provider.slug,
            description=PURPOSES[provider.slug],
            enabled=True,
            scopes=SCOPES[provider.slug],
            credentials=Credentials(type="custom", client_id=provider.client_id, client_secret=secret),
        )
        await use.integrations.create(caller, new)


def _print(configured: Settings, key: Secret, facts: Facts, links: list[tuple[str, str]]) -> None:
    url, token = configured.public_url, key.reveal()
    lines = [
        f"Penstock is running at {url}. Ctrl-C stops it.",
        "",
        f"  Console    {url}/ has fresh connect links whenever it is opened",
        f"  API key    {token}",
        f"  Providers  {', '.join(each.display_name for each in facts.providers)}, emulated at {facts.origin}",
        "",
        *(f"  {label}\n    {link}" for label, link in links),
        "",
        "Follow a link, then ask for a token:",
        "",
        f"  curl -s {url}/data-integrations/github/token \\",
        f"    -H 'Authorization: Bearer {token}' -d '{{\"user_id\": \"ada\"}}'",
        "",
        "Make a connect link as an application would:",
        "",
        f"  curl -s {url}/data-integrations/salesforce/authorize \\",
        f"    -H 'Authorization: Bearer {token}' -d '{{\"user_id\": \"grace\"}}'",
        "",
        "In another terminal: penstock connections list",
    ]
    say("\n".join(lines))
