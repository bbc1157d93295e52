"""Several processes that start at once on a new database: one deployment, one bootstrap key, nobody fails."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from broker.app import open_services
from broker.callers.model import NO_REQUEST
from broker.settings import load
from tests.conftest import FreshDatabase
from tests.rig.server import environment, free_port

KEY = "sk_" + "k" * 43


async def test_replicas_that_start_at_once_agree(fresh_database: FreshDatabase, tmp_path: Path):
    """All come up, seal for the same deployment, and know the bootstrap key; there is one row of each."""
    for _ in range(5):
        dsn = await fresh_database()
        settings = load(environment(tmp_path, free_port(), KEY))
        async with AsyncExitStack() as stack:
            opened = await asyncio.gather(
                *(stack.enter_async_context(open_services(settings, dsn=dsn, durable=False, pool=1)) for _ in range(6))
            )
            deployments = {str(use.revoke._vault._deployment_id) for use in opened}
            callers = {(await use.api_keys.authenticate(KEY, NO_REQUEST)).actor_id for use in opened}

            assert len(deployments) == 1
            assert "None" not in deployments
            assert len(callers) == 1
