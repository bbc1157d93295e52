"""PostgreSQL: named statements from `queries/`, rows as typed values, transactions, and one kind of "gone"."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import msgspec

from broker.errors import StoreUnavailable

Row = TypeVar("Row", bound=msgspec.Struct)

_HEADER = re.compile(r"^-- (?P<kind>name|columns): (?P<name>[a-z_]+)\n(?P<about>(?:-- .*\n)+)", re.MULTILINE)
_COLUMNS = re.compile(r"\{([a-z_]+)\}")
_PARAMETER = re.compile(r"(?<![:\w]):([a-z][a-z0-9_]*)")
_GONE = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.QueryCanceledError,
    asyncpg.InsufficientResourcesError,
    OSError,
    TimeoutError,
)

IDLE_IN_TRANSACTION = "30s"  # no statement is that long in coming; far below a lease


class Statement(msgspec.Struct, frozen=True):
    """One named statement, its `:names` turned into `$1 …` in the order of `parameters`."""

    name: str
    sql: str
    parameters: tuple[str, ...]

    def arguments(self, given: dict[str, Any]) -> list[Any]:
        if given.keys() != set(self.parameters):
            raise TypeError(f"{self.name} takes {sorted(self.parameters)}, not {sorted(given)}")
        return [given[name] for name in self.parameters]


def load_statements(directory: Path = Path(__file__).parent / "queries") -> dict[str, Statement]:
    """Read every statement of `queries/*.sql`; each has a name and a description, and a name is used once.

    A list of columns that several statements share is written once under `-- columns: name` and used as `{name}`.
    """
    columns: dict[str, str] = {}
    bodies: dict[str, str] = {}
    for path in sorted(directory.glob("*.sql")):
        text = path.read_text()
        headers = list(_HEADER.finditer(text))
        ends = [header.start() for header in headers[1:]] + [len(text)]
        for header, end in zip(headers, ends, strict=True):
            target = bodies if header["kind"] == "name" else columns
            if header["name"] in target:
                raise ValueError(f"{path.name}: {header['name']} is named twice")
            target[header["name"]] = text[header.end() : end].strip()
    return {name: _parse(name, _COLUMNS.sub(lambda use: columns[use[1]], body)) for name, body in bodies.items()}


def _parse(name: str, sql: str) -> Statement:
    parameters: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[1] not in parameters:
            parameters.append(match[1])
        return f"${parameters.index(match[1]) + 1}"

    body = "\n".join(line.partition("--")[0].rstrip() for line in sql.strip().splitlines())
    return Statement(name, _PARAMETER.sub(number, body), tuple(parameters))


STATEMENTS = load_statements()


class Session:
    """Named statements on one connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def one(self, row_type: type[Row], name: str, /, **given: Any) -> Row | None:
        """Return the first row as *row_type*, or None."""
        statement = STATEMENTS[name]
        with store_errors():
            record = await self._connection.fetchrow(statement.sql, *statement.arguments(given))
        return row_type(**record) if record is not None else None

    async def all(self, row_type: type[Row], name: str, /, **given: Any) -> list[Row]:
        """Return every row as *row_type*."""
        statement = STATEMENTS[name]
        with store_errors():
            records = await self._connection.fetch(statement.sql, *statement.arguments(given))
        return [row_type(**record) for record in records]

    async def value(self, name: str, /, **given: Any) -> Any:
        """Return the first column of the first row, or None."""
        statement = STATEMENTS[name]
        with store_errors():
            return await self._connection.fetchval(statement.sql, *statement.arguments(given))

    async def execute(self, name: str, /, **given: Any) -> int:
        """Run a statement and return how many rows it touched."""
        statement = STATEMENTS[name]
        with store_errors():
            status = await self._connection.execute(statement.sql, *statement.arguments(given))
        return int(status.rpartition(" ")[2] or 0)


class store_errors:  # noqa: N801  a context manager, read as a verb's object: "with store_errors():"
    """Turn the driver's many ways of saying "the database is gone" into `StoreUnavailable`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, exc: BaseException | None, _trace: object) -> None:
        if isinstance(exc, _GONE):
            raise StoreUnavailable from exc


class Database:
    """The pool; each method takes a connection for one statement, `transaction()` for several."""

    def __init__(
        self,
        dsn: str,
        *,
        size: int = 8,
        durable: bool = True,
        on_connect: Callable[[Session], Awaitable[None]] | None = None,
    ) -> None:
        self._dsn, self._size, self._durable = dsn, size, durable
        self._on_connect = on_connect  # looks at what each new connection leads to
        self._pool: Any = None

    async def open(self) -> None:
        """Make the pool; raise `StoreUnavailable` when the database cannot be reached."""
        with store_errors():
            self._pool = await asyncpg.create_pool(
                self._dsn,
                min_size=1,
                max_size=self._size,
                init=self._prepare,
                reset=_leave_as_it_is,
                command_timeout=30,
                timeout=5,
                server_settings=self._server_settings(),
            )

    async def connect(self) -> Any:
        """Open one connection outside the pool, for the hot path's lanes and for LISTEN."""
        with store_errors():
            connection = await asyncpg.connect(
                self._dsn, timeout=5, command_timeout=30, server_settings=self._server_settings()
            )
            try:
                await self._prepare(connection)
            except BaseException:
                connection.terminate()
                raise
            return connection

    async def _prepare(self, connection: Any) -> None:
        await prepare_connection(connection)
        if self._on_connect is not None:
            await self._on_connect(Session(connection))

    def _server_settings(self) -> dict[str, str]:
        # A hand-out or a refresh intent that a power cut could undo would break promises 1 and 6: insist on "on",
        # whatever the server's default. Tests run on a server without fsync and say so.
        # A process that hangs in a transaction must not keep its rows locked for as long as it lives.
        settings = {"application_name": "penstock", "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION}
        if self._durable:
            settings["synchronous_commit"] = "on"
        return settings

    async def close(self) -> None:
        if self._pool is not None:
            try:
                await asyncio.wait_for(self._pool.close(), 5)
            except TimeoutError:
                self._pool.terminate()
            self._pool = None

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Lend a connection; `StoreUnavailable` when none can be had."""
        if self._pool is None:
            raise StoreUnavailable
        with store_errors():
            connection = await self._pool.acquire(timeout=5)
        try:
            yield Session(connection)
        finally:
            with store_errors():
                await self._pool.release(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Session]:
        """Run several statements, all or nothing."""
        async with self.session() as session:
            transaction = session._connection.transaction()
            with store_errors():
                await transaction.start()
            try:
                yield session
            except BaseException:
                await _roll_back(transaction)
                raise
            with store_errors():
                await transaction.commit()

    async def one(self, row_type: type[Row], name: str, /, **given: Any) -> Row | None:
        async with self.session() as session:
            return await session.one(row_type, name, **given)

    async def all(self, row_type: type[Row], name: str, /, **given: Any) -> list[Row]:
        async with self.session() as session:
            return await session.all(row_type, name, **given)

    async def value(self, name: str, /, **given: Any) -> Any:
        async with self.session() as session:
            return await session.value(name, **given)

    async def execute(self, name: str, /, **given: Any) -> int:
        async with self.session() as session:
            return await session.execute(name, **given)


async def _roll_back(transaction: Any) -> None:
    try:
        await transaction.rollback()
    except _GONE:
        return  # the server undoes the transaction of a connection that is gone


async def prepare_connection(connection: Any) -> None:
    """Teach a new connection JSON."""
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: msgspec.json.encode(value).decode(),
        decoder=msgspec.json.decode,
    )


async def _leave_as_it_is(_connection: Any) -> None:
    """Spare the second round trip of asyncpg's RESET: no statement of ours sets session state."""
