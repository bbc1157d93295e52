"""One Penstock and one hostile provider per module, a backend that speaks to both, and the judge of all three.

A module that wants providers of the catalog, or no worker, overrides `catalog` or `worker`. Whoever asks for `backend`
is judged when the module ends: a suite that passes its own assertions but fails the judge has failed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import pytest

from tests.acceptance.refresh_rig import Case, MadeUp, Store, enable, opened_store, routes, variables
from tests.hostile import HostileServer
from tests.rig import Backend, Penstock, running_penstock
from tests.rig.clients import ClientLog


@pytest.fixture(scope="module")
def catalog() -> Mapping[str, MadeUp]:
    """The made-up providers of the catalog, by slug."""
    return {}


@pytest.fixture(scope="module")
def worker() -> bool:
    """Whether the server does its chores by itself; without, a test reconciles when it wants to."""
    return True


@pytest.fixture(scope="module")
def limits() -> str:
    """PENSTOCK_REFRESH_LIMITS of the server; empty: the defaults."""
    return ""


@pytest.fixture(scope="module")
async def provider(catalog: Mapping[str, MadeUp]) -> AsyncIterator[HostileServer]:
    async with HostileServer(routes=routes(list(catalog))) as server:
        yield server


@pytest.fixture(scope="module")
async def penstock(
    database_dsn: str,
    provider: HostileServer,
    catalog: Mapping[str, MadeUp],
    worker: bool,
    limits: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Penstock]:
    home = tmp_path_factory.mktemp("penstock")
    settings = {**variables(catalog, provider, home), "PENSTOCK_REFRESH_LIMITS": limits}
    async with running_penstock(database_dsn, home, worker=worker, **settings) as server:
        yield server


@pytest.fixture(scope="module")
async def backend(
    penstock: Penstock, provider: HostileServer, catalog: Mapping[str, MadeUp], trial: Case
) -> AsyncIterator[Backend]:
    """Whoever calls Penstock, with the custom provider `acme` and those of the catalog configured."""
    made = Backend(penstock, provider, told=trial.told)
    await made.add_provider()
    for slug, made_up in catalog.items():
        await enable(made, slug)
        provider.tune(scope=slug, **made_up.behaviour)
    yield made
    await made.http.aclose()


@pytest.fixture(scope="module")
async def store(database_dsn: str) -> AsyncIterator[Store]:
    async with opened_store(database_dsn) as opened:
        yield opened


@pytest.fixture(scope="module")
async def trial(provider: HostileServer, store: Store) -> AsyncIterator[Case]:
    """The evidence, judged when the module ends."""
    made = Case(provider, told=ClientLog(provider), store=store)
    yield made
    findings = await made.verdict()
    assert findings == [], "\n".join(findings)
