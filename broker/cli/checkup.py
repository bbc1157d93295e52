"""What `penstock doctor` finds in the database: server, schema, who can open what is sealed, and integrations."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec

from broker.api.services import Services
from broker.app import open_services
from broker.connections.model import Integration
from broker.embedded import OLDEST_POSTGRESQL
from broker.errors import BrokerError, ConfigurationError
from broker.settings import Settings
from broker.store.migrate import pending
from broker.store.postgres import Database
from broker.vault.keyring import KeyVersion

FURTHEST = timedelta(seconds=10)  # between two clocks; a token's lifetime has a margin of 30


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    check: str
    status: Literal["ok", "note", "failed"]
    detail: str
    remedy: str | None = None


class ServerFacts(msgspec.Struct, frozen=True):
    version: int
    at: datetime


class BlobsUnder(msgspec.Struct, frozen=True):
    """How many sealed blobs need one key version."""

    kek_ref: str
    blobs: int


def failed(check: str, exc: BrokerError, remedy: str | None = None) -> Finding:
    """Return what an error means for a check; a setting's own remedy goes before *remedy*."""
    if isinstance(exc, ConfigurationError):
        return Finding(check, "failed", f"{exc.variable} {exc.problem}", exc.remedy)
    return Finding(check, "failed", exc.message, remedy)


async def of_store(configured: Settings, dsn: str, versions: Sequence[KeyVersion]) -> list[Finding]:
    """Look at the database; raise `StoreUnavailable` or `ConfigurationError` where there is nothing to look at."""
    missing = await pending(dsn)
    database = Database(dsn, size=1)
    await database.open()
    try:
        found = await _server(database)
        if missing:
            remedy = "Run `penstock migrate`, or start `penstock serve` without --no-migrate."
            return [*found, Finding("schema", "failed", f"{', '.join(missing)} has not been applied", remedy)]
        found.append(Finding("schema", "ok", "up to date"))
        found += await _secrets(database, versions)
        integrations = await database.all(Integration, "every_integration")
    finally:
        await database.close()
    if integrations and versions:
        # It has been served before, so opening the use-cases adds nothing; a new bootstrap key would be added.
        unchanging = msgspec.structs.replace(configured, bootstrap_api_key=None)
        async with open_services(unchanging, dsn=dsn, pool=1) as use:
            found.append(await _restored(use))
            found += [_integration(use, integration) for integration in integrations]
    return found


async def _server(database: Database) -> list[Finding]:
    before = datetime.now(UTC)
    facts = await database.one(ServerFacts, "server_facts")
    after = datetime.now(UTC)
    if facts is None:
        return []
    found = [_version(facts.version)]
    apart = max(facts.at - after, before - facts.at, timedelta(0))  # the answer was made somewhere between
    if apart > FURTHEST:
        remedy = "Set both clocks by NTP: tokens would be served too long or refreshed too early."
        found.append(Finding("clock", "failed", f"{apart.total_seconds():.0f} s from the database's", remedy))
    else:
        found.append(Finding("clock", "ok", f"{apart.total_seconds():.1f} s from the database's"))
    return found


def _version(version: int) -> Finding:
    if version < OLDEST_POSTGRESQL:
        remedy = f"Upgrade it to PostgreSQL {OLDEST_POSTGRESQL} or newer."
        return Finding("database", "failed", f"PostgreSQL {version} is too old", remedy)
    return Finding("database", "ok", f"reachable, PostgreSQL {version}")


async def _secrets(database: Database, versions: Sequence[KeyVersion]) -> list[Finding]:
    """Say how many secrets each key version opens, and which nobody can open."""
    states = {version.ref: version.state for version in versions}
    found = []
    for row in await database.all(BlobsUnder, "blobs_by_key_version"):
        state = states.get(row.kek_ref, "missing")
        detail = f"{row.blobs} sealed under {row.kek_ref}, which is {state}"
        if state == "primary":
            found.append(Finding("secrets", "ok", detail))
        elif state == "enabled":
            found.append(Finding("secrets", "note", detail, "`penstock keys rewrap` brings them under the primary."))
        elif state == "disabled":
            found.append(Finding("secrets", "failed", detail, f"Run `penstock keys enable {row.kek_ref}`."))
        else:
            remedy = "Restore the keyring that sealed this database; without it these connections must be made anew."
            found.append(Finding("secrets", "failed", detail, remedy))
    return found


async def _restored(use: Services) -> Finding:
    """Look at the seal that a restore or a failover leaves, and at what is held after one."""
    status = await use.restores.status(None)
    epoch = f"restore epoch {status.restore_epoch}"
    if status.sealed_since is not None:
        remedy = "Nothing is refreshed until `penstock restore confirm`; deploy/runbook.md says what to look at before."
        return Finding("restore", "failed", f"sealed since {status.sealed_since:%F %T %Z}. {status.explained}", remedy)
    if status.held:
        remedy = "`penstock restore release` probes their access tokens, and lets their refresh tokens be sent once."
        return Finding("restore", "note", f"{status.held} connections hold tokens of a backup; {epoch}", remedy)
    return Finding("restore", "ok", f"not sealed, nothing held; {epoch}")


def _integration(use: Services, integration: Integration) -> Finding:
    """Look at one integration's descriptor, client secret and state, and name its redirect URI."""
    check = f"integration {integration.slug} ({integration.environment_id}, {integration.ownership}-owned)"
    if not integration.enabled:
        return Finding(check, "note", "disabled")
    try:
        descriptor = use.providers.descriptor(integration)
        if integration.credentials_type != "organization":
            use.providers.registration(integration, descriptor)
    except BrokerError as exc:
        return failed(check, exc, f"Enter the credentials again: PUT /data-integrations/{integration.slug}.")
    where = descriptor.docs.setup_url or f"{descriptor.display_name}, in the application's settings"
    remedy = f"Register {use.providers.redirect_uri(integration)} at {where}."
    if integration.suspect_since is not None:
        detail = f"suspect since {integration.suspect_since:%Y-%m-%d %H:%M} UTC: it refused too many grants at once"
        decide = f"`penstock brakes list` says which; decide by `penstock brakes release {integration.slug}`."
        return Finding(check, "failed", detail, decide)
    if integration.state != "valid":
        detail = f"{integration.state}: {integration.state_reason or 'not completely configured'}"
        return Finding(check, "failed", detail, f"Correct its credentials. {remedy}")
    return Finding(check, "ok", "enabled, its client secret can be opened", remedy)
