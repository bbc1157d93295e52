"""`penstock demo`: the whole product once, on real sockets, in a temporary directory that vanishes afterwards."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import msgspec
import rich_click as click
import uvloop

from broker import ids
from broker.app import create
from broker.cli.common import run
from broker.cli.demo_story import RETURN_TO, Story, Teller
from broker.cli.janitor import vanishing
from broker.cli.local import emulated
from broker.cli.output import say
from broker.cli.server import serving
from broker.embedded import EmbeddedPostgres
from broker.outbound import Outbound
from broker.secret import Secret
from broker.settings import Settings, load
from broker.store.migrate import migrate


@click.command()
def demo() -> None:
    """Show everything once, with emulated providers: connect, hand out, refresh, reauthorize, disconnect, audit.

    Needs nothing and leaves nothing; PENSTOCK_ settings are not looked at. Takes a few seconds.
    """
    began, teller = time.monotonic(), Teller()
    teller.begin("An embedded PostgreSQL starts")
    with vanishing("penstock-demo-") as home, socket.create_server(("127.0.0.1", 0)) as listener:
        key = Secret(ids.random_token("sk_"))
        configured = _settings(home, listener, key)
        with EmbeddedPostgres(home / "postgres", durable=False) as server:
            run(migrate(server.dsn))
            teller.end("ready, with its schema")
            run(_told(teller, configured, key, server.dsn, listener), loop_factory=uvloop.new_event_loop)
    teller.show()
    took = time.monotonic() - began
    say(f"\nAll {len(teller.steps)} steps worked, in {took:.1f} s. `penstock dev` stays up to try it.")


def _settings(home: Path, listener: socket.socket, key: Secret) -> Settings:
    """Return the settings of a development server, whatever the environment says."""
    settings = load(
        {
            "PENSTOCK_HOME": str(home),
            "PENSTOCK_LISTEN": f"127.0.0.1:{listener.getsockname()[1]}",
            "PENSTOCK_ALLOWED_RETURN_TO": RETURN_TO,
        }
    )
    return msgspec.structs.replace(settings, bootstrap_api_key=key)


async def _told(teller: Teller, configured: Settings, key: Secret, dsn: str, listener: socket.socket) -> None:
    """Serve and tell the story; every request of it leaves by `Outbound`, as the server's own do."""
    teller.begin("Emulated GitHub and Salesforce start, and Penstock")
    async with emulated(configured) as (mapped, facts), serving(create(mapped, dsn=dsn, durable=False), listener):
        teller.end(f"Penstock at {mapped.public_url}, the providers at {facts.origin}")
        addresses = (f"{mapped.host}:{mapped.port}", facts.origin.removeprefix("http://"))
        outbound = Outbound(allow=addresses, provider_hosts=mapped.provider_hosts)
        try:
            for title, act in Story(outbound, mapped.public_url, key, facts).steps():
                teller.begin(title)
                teller.end(await act())
        finally:
            await outbound.aclose()
