"""Real server processes for the measurements in real time, and callers on keep-alive connections of their own."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from broker.store.migrate import migrate
from tests.bench.database import create_database
from tests.bench.faults.model import BY_SLUG, NO_FAULTS, Person, Timing
from tests.bench.faults.provider import DayProvider
from tests.bench.faults.stores import connect, environment
from tests.bench.machine import usable_cores
from tests.bench.processes import Server, serving
from tests.bench.target import Start, Target

PROVIDER = BY_SLUG["r4"]  # nothing forgiving: a second call would lose the connection
LIFE = 3600.0  # seconds of an access token


class Told(msgspec.Struct, frozen=True):
    """One answer, when it was there on the clock of `time.time`, and what it asks to wait."""

    status: int
    at: float
    retry_after: float  # seconds
    active: bool


class Caller:
    """One keep-alive connection to one server, asking for one person's token."""

    def __init__(self, port: int, api_key: str, person: Person) -> None:
        body = json.dumps({"user_id": person.user_id})
        head = (
            f"POST /data-integrations/{person.provider.slug}/token HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Authorization: Bearer {api_key}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._port, self._request = port, (head + body).encode()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def connect(self) -> None:
        """Open the connection, so that asking does not wait for it."""
        self._streams = await asyncio.open_connection("127.0.0.1", self._port)

    async def ask(self) -> Told:
        """Send the request and read its answer; on a new connection where the server has closed an idle one."""
        while True:
            if self._streams is None or self._streams[0].at_eof():
                self.close()
                await self.connect()
            try:
                return await self._asked()
            except (asyncio.IncompleteReadError, ConnectionError):
                self.close()

    async def _asked(self) -> Told:
        assert self._streams is not None
        reader, writer = self._streams
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
        body = await reader.readexactly(int(fields[b"content-length"]))
        status, at = int(head.split(b" ", 2)[1]), time.time()
        return Told(status, at, float(fields.get(b"retry-after", 1)), b'"active":true' in body)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Field(msgspec.Struct, frozen=True):
    """A provider that answers in 200 ms, people whose tokens are over, and how to start servers for them."""

    provider: DayProvider
    people: Sequence[Person]
    variables: Mapping[str, str]

    @property
    def dsn(self) -> str:
        return self.variables["PENSTOCK_DATABASE_URL"]

    @property
    def api_key(self) -> str:
        return self.variables["PENSTOCK_BOOTSTRAP_API_KEY"]

    @asynccontextmanager
    async def servers(self, count: int, **more: str) -> AsyncIterator[Sequence[Server]]:
        """Run *count* server processes until the block ends."""
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(serving(self._target(more), ALL_CORES)) for _ in range(count)]

    def _target(self, more: Mapping[str, str]) -> Target:
        command = [sys.executable, "-m", "broker", "serve", "--no-migrate", "--no-worker"]

        def start(port: int) -> Start:
            return Start(command, {**self.variables, **more, "PENSTOCK_LISTEN": f"127.0.0.1:{port}"})

        return Target(name="penstock", about="", start=start, headers={}, payloads=[])


ALL_CORES = frozenset(usable_cores())


@asynccontextmanager
async def field(dsn: str, database: str, home: Path, *, connections: int) -> AsyncIterator[Field]:
    """Connect people whose access tokens are over."""
    own = await create_database(dsn, database)
    await migrate(own)
    people = [Person(number, PROVIDER, LIFE, 0.0) for number in range(connections)]
    async with DayProvider(now=time.time, seed=0, rates=NO_FAULTS, timing=Timing(1.0)) as provider:
        variables = environment(own, home, provider)
        await connect(variables, provider, people, now=time.time())
        yield Field(provider, people, variables)
