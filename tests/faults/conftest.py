"""The same servers and the same judge as the acceptance tests have, and a PostgreSQL that a module may stop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.fixtures import backend, catalog, limits, penstock, provider, store, trial, worker
from tests.faults.postgres import Postgres

__all__ = ["backend", "catalog", "limits", "penstock", "postgres_of_its_own", "provider", "store", "trial", "worker"]


@pytest.fixture(scope="module")
def postgres_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server of the module's own, with the disk's guarantees."""
    server = Postgres(tmp_path_factory.mktemp("pg"))
    server.start()
    yield server
    server.stop()
