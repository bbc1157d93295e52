"""The database of a run: Penstock's tables and the naive strategy's, filled alike, and writes refused to both alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg

from broker import ids, settings
from broker.api.services import Services
from broker.app import DEFAULT_ENVIRONMENT, open_services
from broker.callers.model import system
from broker.connections.integrations import Credentials, NewIntegration
from broker.connections.model import Integration, Lifetimes, Owner, Tokens, lifetimes
from broker.connections.vaulted import Vault
from broker.oauth.model import Rotation, TokenSet
from broker.secret import Secret
from tests.acceptance.refresh_rig import descriptor, stand_ins, write_catalog
from tests.bench.faults.model import BY_SLUG, CLIENT_SECRET, PROVIDERS, Person
from tests.bench.faults.naive import TABLE
from tests.bench.faults.provider import DayProvider
from tests.bench.penstock import CONNECTION, SECRET

Grants = Mapping[int, str]  # of the people, by number
# A sequence is not rolled back, so each try of a write has a chance of its own, and the same ones in every run.
_REFUSALS = """
CREATE SEQUENCE sim.writes;
CREATE SEQUENCE sim.refused MINVALUE 0; SELECT nextval('sim.refused');
CREATE TABLE sim.refusals (share double precision NOT NULL, seed bigint NOT NULL);
CREATE FUNCTION sim.refuse_some() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF abs(hashint8extended(nextval('sim.writes'), (SELECT seed FROM sim.refusals)) % 1000000)
       < 1000000 * (SELECT share FROM sim.refusals) THEN
        PERFORM nextval('sim.refused');
        RAISE EXCEPTION 'refused' USING ERRCODE = 'XX000';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse_some BEFORE INSERT ON secret_version FOR EACH ROW EXECUTE FUNCTION sim.refuse_some();
CREATE TRIGGER refuse_some BEFORE INSERT ON receipt FOR EACH ROW EXECUTE FUNCTION sim.refuse_some();
CREATE TRIGGER refuse_some BEFORE UPDATE OF refresh_token ON naive.account
    FOR EACH ROW EXECUTE FUNCTION sim.refuse_some();
"""


def environment(dsn: str, home: Path, provider: DayProvider) -> dict[str, str]:
    """Return the settings of every Penstock process of a run; writes the catalog they name."""
    slugs = [one.slug for one in PROVIDERS]
    home.mkdir(exist_ok=True)
    catalog = write_catalog(home / "providers", {one.slug: descriptor(one.slug, one.table) for one in PROVIDERS})
    return {
        "PENSTOCK_HOME": str(home),
        "PENSTOCK_DATABASE_URL": dsn,
        "PENSTOCK_BOOTSTRAP_API_KEY": ids.random_token("sk_"),
        "PENSTOCK_PROVIDERS_DIR": str(catalog),
        "PENSTOCK_PROVIDER_HOSTS": stand_ins(slugs, provider),
    }


async def connect(
    variables: Mapping[str, str], provider: DayProvider, people: Sequence[Person], *, now: float
) -> Grants:
    """Connect everybody to Penstock, with a grant each, as of *now*, epoch seconds; return the grants."""
    async with open_services(settings.load(variables)) as services:
        integrations = {slug: await _integrated(services, slug) for slug in BY_SLUG}
        vault = Vault(services.keyring, await services.database.value("ensure_deployment"))
    tokens = {person.number: provider.consented(person) for person in people}
    rows = list(_rows(vault, integrations, people, tokens, datetime.fromtimestamp(now, UTC)))
    async with connected(variables["PENSTOCK_DATABASE_URL"]) as database:
        await database.copy_records_to_table("connection", records=[row for row, _ in rows], columns=CONNECTION)
        await database.copy_records_to_table("secret_version", records=[secret for _, secret in rows], columns=SECRET)
        await database.execute("VACUUM ANALYZE")
    return {number: grant for number, (grant, _, _) in tokens.items()}


async def connect_naively(dsn: str, provider: DayProvider, people: Sequence[Person], *, now: float) -> Grants:
    """Give everybody a second grant, and the naive strategy its tokens; return the grants."""
    tokens = {person.number: provider.consented(person) for person in people}
    start = datetime.fromtimestamp(now, UTC)
    ends = {person.number: start + timedelta(seconds=person.left) for person in people}
    records = [(number, *held, ends[number], False) for number, (_, *held) in tokens.items()]
    async with connected(dsn) as database:
        await database.execute(TABLE)
        await database.copy_records_to_table("account", schema_name="naive", records=records)
    return {number: grant for number, (grant, _, _) in tokens.items()}


async def refuse_writes(dsn: str, share: float, seed: int) -> None:
    """Let PostgreSQL refuse this share of what is written of answers and tokens, by both strategies."""
    async with connected(dsn) as database:
        await database.execute(_REFUSALS)
        await database.execute("INSERT INTO sim.refusals VALUES ($1, $2)", share, seed)


async def accept_writes(dsn: str) -> None:
    """Let PostgreSQL refuse nothing any more."""
    async with connected(dsn) as database:
        await database.execute("UPDATE sim.refusals SET share = 0")


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """Connect to the database beside everybody else."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def _integrated(services: Services, slug: str) -> Integration:
    credentials = Credentials(type="custom", client_id=slug, client_secret=Secret(CLIENT_SECRET))
    new = NewIntegration(provider=slug, enabled=True, scopes=["read"], credentials=credentials)
    return await services.integrations.create(system(DEFAULT_ENVIRONMENT), new)


def _rows(
    vault: Vault,
    integrations: Mapping[str, Integration],
    people: Sequence[Person],
    tokens: Mapping[int, tuple[str, str, str]],
    start: datetime,
) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    for person in people:
        integration = integrations[person.provider.slug]
        _, access_token, refresh_token = tokens[person.number]
        held = Tokens(access_token=Secret(access_token), refresh_token=Secret(refresh_token), metadata={})
        place = vault.place(
            integration.environment_id, person.connection_id, Owner(user_id=person.user_id), integration.id, 1
        )
        sealed = vault.seal(place, held.to_bytes())
        ends = _ends(person, held, start)
        yield (
            (
                *(integration.environment_id, person.connection_id, integration.id, person.user_id, "compatibility"),
                *("oauth", "connected", 1, 1, True, ends.at_exp, ends.at_life_s, ends.serve_until, ends.refresh_after),
                *(["read"], person.user_id, person.user_id, None),
            ),
            (integration.environment_id, person.connection_id, 1, 1, "current", start, sealed.blob, sealed.kek_ref),
        )


def _ends(person: Person, held: Tokens, start: datetime) -> Lifetimes:
    rotation = Rotation(
        rotation_class=person.provider.rotation, kills_old_access_token=person.provider.kills_old_access_token
    )
    end = start + timedelta(seconds=person.left)
    answer = TokenSet(access_token=held.access_token, refresh_token=held.refresh_token, expires_at=end)
    return lifetimes(rotation, answer, sent_at=end - timedelta(seconds=person.life), jitter=0.5)
