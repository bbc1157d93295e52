"""The penstock command as people run it: a process with an environment of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from broker.settings import Settings

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "broker")


class Ended(NamedTuple):
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return msgspec.json.decode(self.out)


def clean(environment: Mapping[str, str]) -> dict[str, str]:
    """Return our environment with no setting of Penstock's but those given."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    return {**ours, "PYTHONPATH": str(ROOT), **environment}


def environment_of(settings: Settings, dsn: str) -> dict[str, str]:
    """Return what a command beside a running server is started with."""
    hosts = ",".join(f"{host}={origin}" for host, origin in settings.provider_hosts.items())
    return {
        "PENSTOCK_HOME": str(settings.home),
        "PENSTOCK_LISTEN": f"{settings.host}:{settings.port}",
        "PENSTOCK_DATABASE_URL": dsn,
        "PENSTOCK_PROVIDERS_DIR": str(settings.providers_dir or ""),
        "PENSTOCK_PROVIDER_HOSTS": hosts,
        "PENSTOCK_OUTBOUND_ALLOW": ",".join(settings.outbound_allow),
    }


async def started(
    *arguments: str, environment: Mapping[str, str], cwd: Path | None = None
) -> asyncio.subprocess.Process:
    """Start a command; its output is collected by `ended`."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        env=clean(environment),
        cwd=cwd,
    )


async def ended(process: asyncio.subprocess.Process) -> Ended:
    """Wait for a command's end."""
    out, err = await process.communicate()
    return Ended(process.returncode or 0, out.decode(), err.decode())


async def penstock(*arguments: str, environment: Mapping[str, str], cwd: Path | None = None) -> Ended:
    """Run a command to its end."""
    return await ended(await started(*arguments, environment=environment, cwd=cwd))
