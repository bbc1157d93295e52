"""Baseline (c): the token endpoint a good team writes in-house with FastAPI, SQLAlchemy and a Fernet column, no audit.

Nothing is held back: uvloop, a pool as large as the middle load, one statement per request for key and token together,
the refresh token not even read. uvicorn serves `app`; `python -m tests.bench.inhouse` makes and fills its tables.
BENCH_DATABASE_URL and BENCH_FERNET_KEY configure both, BENCH_API_KEY and BENCH_USERS the filling.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from cryptography.fernet import Fernet
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from pydantic import BaseModel
from sqlalchemy import JSON, DateTime, ForeignKey, LargeBinary, String, UniqueConstraint, and_, insert, select, text
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

POOL_SIZE = 16
EXPIRY_MARGIN = timedelta(seconds=60)


class Encrypted(TypeDecorator[str]):
    """Text that is sealed with the key from the environment on its way into the database, and opened on its way out."""

    impl = LargeBinary
    cache_ok = True

    def __init__(self) -> None:
        super().__init__()
        self._fernet = Fernet(os.environ["BENCH_FERNET_KEY"])

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:
        return None if value is None else self._fernet.encrypt(value.encode())

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> str | None:
        return None if value is None else self._fernet.decrypt(value).decode()


class Base(DeclarativeBase):
    """The in-house tables."""


class ApiKey(Base):
    """A backend that may ask, known by the SHA-256 of its key."""

    __tablename__ = "api_keys"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    revoked_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class Connection(Base):
    """One user's account at one provider."""

    __tablename__ = "connections"
    __table_args__ = (UniqueConstraint("api_key_id", "provider", "user_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    api_key_id: Mapped[int] = mapped_column(ForeignKey("api_keys.id"))
    provider: Mapped[str] = mapped_column(String(100))
    user_id: Mapped[str] = mapped_column(String(255))
    access_token: Mapped[str] = mapped_column(Encrypted())
    refresh_token: Mapped[str | None] = mapped_column(Encrypted(), deferred=True)
    token_type: Mapped[str] = mapped_column(String(50), default="Bearer")
    expires_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    instance_url: Mapped[str | None] = mapped_column(String(500))
    account_id: Mapped[str] = mapped_column(String(200))
    account_name: Mapped[str | None] = mapped_column(String(200))


class TokenRequest(BaseModel):
    user_id: str


class Account(BaseModel):
    id: str
    name: str | None


class AccessToken(BaseModel):
    object: Literal["access_token"] = "access_token"
    access_token: str
    expires_at: datetime | None
    scopes: list[str]
    missing_scopes: list[str] = []
    token_type: str
    token_id: str
    connection_id: str
    expires_in: int | None
    instance_url: str | None
    metadata: dict[str, str]
    account: Account
    degraded: bool = False


class TokenAnswer(BaseModel):
    active: bool
    access_token: AccessToken | None = None
    error: str | None = None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    engine = create_async_engine(os.environ["BENCH_DATABASE_URL"], pool_size=POOL_SIZE, max_overflow=0)
    app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


async def database_session(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.sessions() as session:
        yield session


async def key_digest(authorization: Annotated[str, Header()]) -> bytes:
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise HTTPException(401, "Invalid token")
    return hashlib.sha256(key.encode()).digest()


@app.post("/data-integrations/{slug}/token")
async def token(
    slug: str,
    body: TokenRequest,
    session: Annotated[AsyncSession, Depends(database_session)],
    digest: Annotated[bytes, Depends(key_digest)],
) -> TokenAnswer:
    belongs = and_(Connection.api_key_id == ApiKey.id, Connection.provider == slug, Connection.user_id == body.user_id)
    found = await session.execute(
        select(ApiKey.id, Connection)
        .outerjoin(Connection, belongs)
        .where(ApiKey.digest == digest, ApiKey.revoked_at.is_(None))
    )
    row = found.one_or_none()
    if row is None:
        raise HTTPException(401, "Invalid token")
    connection = row.Connection
    if connection is None:
        return TokenAnswer(active=False, error="not_installed")
    now = datetime.now(UTC)
    if connection.expires_at is not None and connection.expires_at < now + EXPIRY_MARGIN:
        return TokenAnswer(active=False, error="needs_reauthorization")
    return TokenAnswer(active=True, access_token=access_token_of(connection, now))


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


def access_token_of(connection: Connection, now: datetime) -> AccessToken:
    expires_at = connection.expires_at
    return AccessToken(
        access_token=connection.access_token,
        expires_at=expires_at,
        scopes=connection.scopes,
        token_type=connection.token_type,
        token_id=f"tok_{connection.id}",
        connection_id=f"data_installation_{connection.id}",
        expires_in=None if expires_at is None else int((expires_at - now).total_seconds()),
        instance_url=connection.instance_url,
        metadata={"instance_url": connection.instance_url} if connection.instance_url else {},
        account=Account(id=connection.account_id, name=connection.account_name),
    )


async def fill() -> None:
    """Create the tables with one API key and a Salesforce connection for each of `user_000000`, `user_000001`, …"""
    engine = create_async_engine(os.environ["BENCH_DATABASE_URL"])
    digest = hashlib.sha256(os.environ["BENCH_API_KEY"].encode()).digest()
    users = range(int(os.environ["BENCH_USERS"]))
    async with engine.begin() as database:
        await database.run_sync(Base.metadata.create_all)
        await database.execute(insert(ApiKey).values(id=1, name="backend", digest=digest))
        await database.execute(insert(Connection), [_row(number) for number in users])
        await database.execute(text("analyze"))
    await engine.dispose()


def _row(number: int) -> dict[str, object]:
    return {
        "api_key_id": 1,
        "provider": "salesforce",
        "user_id": f"user_{number:06}",
        "access_token": f"00D5g{number:010}!" + "A" * 96,
        "refresh_token": f"5Aep861{number:010}" + "B" * 70,
        "expires_at": datetime.now(UTC) + timedelta(hours=2),
        "scopes": ["api", "refresh_token"],
        "instance_url": "https://acme.my.salesforce.com",
        "account_id": f"00D5g000000XXXX/0055g{number:010}",
        "account_name": f"user{number}@acme.example",
    }


if __name__ == "__main__":
    asyncio.run(fill())
