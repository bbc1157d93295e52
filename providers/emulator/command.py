"""The command: `penstock emulate github salesforce`, or `python -m providers.emulator`."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from broker.errors import DescriptorError
from broker.oauth.catalog import load_catalog
from providers.emulator.app import Emulator
from providers.emulator.facts import Facts
from providers.emulator.knobs import HELP, KnobRefused, read_settings
from providers.emulator.running import RunningEmulator

_WRAPPED = (
    click.wrap_text(f"{name}: {text}", width=78, initial_indent="  ", subsequent_indent="      ")
    for name, text in HELP.items()
)
_KNOBS = "\n".join(("\b", "Knobs:", *_WRAPPED))


@click.command(epilog=_KNOBS)
@click.argument("slugs", nargs=-1, metavar="[PROVIDER]...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=9001, show_default=True, type=click.IntRange(0, 65535), help="Port; 0: any free one.")
@click.option("--knob", "knobs", multiple=True, metavar="[PROVIDER.]NAME=VALUE", help="Turn a knob; see below.")
@click.option(
    "--providers-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar="PENSTOCK_PROVIDERS_DIR",
    help="Further descriptors, as for the server.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what to set as one line of JSON.")
def emulate(
    slugs: tuple[str, ...], host: str, port: int, knobs: tuple[str, ...], providers_dir: Path | None, as_json: bool
) -> None:
    """Run providers on this machine, each in its own dialect; without PROVIDER, the whole catalog.

    Point Penstock at them with the line that is printed. Nothing outlives the process.
    """
    try:
        emulator = Emulator(slugs, catalog=load_catalog(providers_dir))
        for provider, changes in read_settings(knobs).items():
            emulator.turn(provider, **changes)
    except (DescriptorError, KnobRefused) as error:
        raise click.UsageError(str(error)) from error
    try:
        asyncio.run(_serve(emulator, host, port, as_json=as_json))
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror}") from error


async def _serve(emulator: Emulator, host: str, port: int, *, as_json: bool) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with RunningEmulator(emulator, host=host, port=port) as running:
        facts = emulator.printed(running.origin)
        click.echo(msgspec.json.encode(facts).decode() if as_json else "\n".join(_lines(facts)))
        await stopped.wait()


def _lines(facts: Facts) -> Iterator[str]:
    yield f"Emulating {len(facts.providers)} providers at {facts.origin}; control-C ends it. Start Penstock with"
    for name, value in facts.environment.items():
        yield f"  {name}='{value}'"
    for provider in facts.providers:
        yield ""
        yield f"{provider.display_name} ({provider.slug})"
        yield f"  client_id      {provider.client_id}"
        yield f"  client_secret  {provider.client_secret or 'none, a public client'}"
        for login, identity in provider.people.items():
            yield f"  {login:<13}  {identity.name}, account {identity.id}, of {identity.tenant_name}"
    yield ""
    yield f"Turn knobs with POST {facts.origin}/_emulator/knobs; GET {facts.origin}/_emulator/journal shows what came."
