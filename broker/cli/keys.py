"""`penstock keys`: the key-encryption keys, and bringing stored secrets under the newest one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import rich_click as click

from broker.api.admin_views import operation_view
from broker.api.services import Services
from broker.app import DEFAULT_ENVIRONMENT
from broker.audit import records
from broker.cli.checkup import BlobsUnder
from broker.cli.common import as_json as json_option
from broker.cli.common import operator, settings, with_services
from broker.cli.output import hint, progress_bar, say, show_json, show_table
from broker.connections.revocation.operations import Operation
from broker.connections.wire import timestamp
from broker.errors import InvalidState, NotFound
from broker.vault.keyring import FileKeyring, KeyVersion, open_keyring


@click.group()
def keys() -> None:
    """Make, rotate and retire key-encryption keys."""


@keys.command()
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def new(path: Path, as_json: bool) -> None:
    """Make a keyring file at PATH, readable by you alone."""
    keyring = FileKeyring.create(path)
    if as_json:
        show_json({"path": str(path.absolute()), "primary": keyring.primary_ref})
        return
    say(f"Made {path}. Set PENSTOCK_KEYRING=file:{path.absolute()}")
    hint("Keep a copy of it away from the database's backups: without this file nothing sealed can be opened.")


@keys.command("list")
@json_option
def list_versions(as_json: bool) -> None:
    """List key versions and how many secrets are sealed under each."""
    configured = settings()
    versions = open_keyring(configured.keyring, production=configured.production).versions
    counts = with_services(_counts)
    if as_json:
        show_json([_shown(version, counts) for version in versions])
        return
    rows = [(version.ref, version.state, version.created_at, counts.get(version.ref, 0)) for version in versions]
    show_table(("key version", "state", "made", "secrets"), rows)


@keys.command()
@json_option
def rotate(as_json: bool) -> None:
    """Make a new key version, which seals from now on; what is sealed already stays readable."""
    made = with_services(lambda use: use.rewrap.rotated(operator(DEFAULT_ENVIRONMENT)))
    if as_json:
        show_json(made)
        return
    say(f"{made['id']} seals from now on; {made['previous_id']} still opens what it sealed.")
    hint("Run `penstock keys rewrap` to bring everything under the new version.")


@keys.command()
@json_option
def rewrap(as_json: bool) -> None:
    """Bring every stored secret under the newest key version, online.

    Only wrapped data keys change; no secret is opened. If it is stopped or killed, run it again: it goes on.
    """
    operation, left = with_services(_rewrapped)
    if as_json:
        show_json({**operation_view(operation, "rewrap"), "remaining": left})
    else:
        say(f"{operation.done} rewrapped, {left} left.")
    if left:
        remedy = "`penstock doctor` says which key versions are missing; enable or restore them, then run this again."
        raise InvalidState(f"{left} secrets are still under other key versions. {remedy}")


async def _rewrapped(use: Services) -> tuple[Operation, int]:
    """Do the operation that a killed run has left, or a new one; return it, and how many secrets it had to leave."""
    total = await use.rewrap.count()
    unfinished = await use.database.all(Operation, "running_operations", kinds=["rewrap"])
    operation = unfinished[0] if unfinished else await use.rewrap.begin(operator(DEFAULT_ENVIRONMENT))
    done = 0
    with progress_bar("Rewrapping", total) as shown:

        def progress(count: int) -> None:
            nonlocal done
            done += count
            shown(done)

        await use.rewrap.run(operation, progress)
    return await use.revoke.operation(operation.actor, operation.id), await use.rewrap.count()


# --- one version ------------------------------------------------------------------------------------------------


@keys.command()
@click.argument("ref")
def disable(ref: str) -> None:
    """Stop opening what REF sealed; `enable` undoes it."""
    _change(ref, "disabled", lambda keyring: keyring.disable(ref))
    say(f"What {ref} sealed is not opened any more. `penstock keys enable` undoes this.")


@keys.command()
@click.argument("ref")
def enable(ref: str) -> None:
    """Open what REF sealed again."""
    _change(ref, "enabled", lambda keyring: keyring.enable(ref))
    say(f"What {ref} sealed is opened again.")


@keys.command()
@click.argument("ref")
@click.option("--yes", is_flag=True, help="Do it: nothing brings the key back.")
def destroy(ref: str, yes: bool) -> None:
    """Drop the key of a disabled version for good; refused while any stored secret needs it."""

    async def unused(use: Services) -> None:
        _check_exists(use, ref)
        if needed := (await _counts(use)).get(ref, 0):
            raise InvalidState(f"{needed} secrets are sealed under {ref}. Run `penstock keys rewrap` first.")

    with_services(unused)
    if not yes:
        say(f"Nothing stored needs {ref}; backups may. With --yes its key is destroyed, in this file for good.")
        return
    _change(ref, "destroyed", lambda keyring: keyring.destroy(ref))
    say(f"{ref} is destroyed. Destroy copies of the keyring file, too.")


def _change(ref: str, state: str, change: Callable[[FileKeyring], None]) -> None:
    """Change a version's state and write that down."""

    async def changed(use: Services) -> None:
        _check_exists(use, ref)
        await asyncio.to_thread(change, use.keyring)
        async with use.database.transaction() as session:
            await records.record(session, operator(DEFAULT_ENVIRONMENT), "key_changed", reason=f"{state} {ref}")

    with_services(changed)


def _check_exists(use: Services, ref: str) -> None:
    if ref not in {version.ref for version in use.keyring.versions}:
        raise NotFound(f"There is no key version {ref}. `penstock keys list` has them.")


async def _counts(use: Services) -> dict[str, int]:
    return {row.kek_ref: row.blobs for row in await use.database.all(BlobsUnder, "blobs_by_key_version")}


def _shown(version: KeyVersion, counts: dict[str, int]) -> dict[str, object]:
    return {
        "object": "key",
        "id": version.ref,
        "state": version.state,
        "created_at": timestamp(version.created_at),
        "secrets": counts.get(version.ref, 0),
    }
