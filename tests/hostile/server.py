"""The hostile authorization server: listens, routes, keeps the journal, and is steered by `tune` and `once`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import random
import ssl
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from . import front
from .back import BackChannel
from .call import Call, entry_of
from .control import control
from .dialects import http_date, refusal_answer
from .grants import Grant, GrantBook
from .http import Connection, Request, Response
from .journal import Entry, Journal, Standing, fingerprint
from .knobs import Endpoint, KnobBoard, Knobs
from .wire import deliver, spoilt

_ROUTES: dict[str, Endpoint] = {
    "/authorize": "authorize",
    "/token": "token",
    "/revoke": "revoke",
    "/introspect": "introspect",
    "/userinfo": "userinfo",
    "/api/ping": "ping",
}
_UNFAULTED = Knobs()
_MAX_HEAD = 2 << 20  # bytes; authorization requests may be absurdly long
_FOREVER = 3600.0  # seconds
_HOLD = 30.0  # seconds an answer held back waits for a later one


class HostileServer:
    """One authorization server on one port. Use as an async context manager, or `start` and `stop`.

    After `stop`, `start` listens on the same port again with everything remembered: an outage.
    *routes* adds paths: `{"/login/oauth/access_token": "token"}`. *now* is epoch seconds, for every lifetime and the
    journal; delays are real. *public_host* is the host name in `url` where the address will not do (TLS).
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        knobs: Knobs | None = None,
        issuer: str | None = None,
        routes: Mapping[str, Endpoint] | None = None,
        tls: ssl.SSLContext | None = None,
        public_host: str | None = None,
        now: Callable[[], float] = time.time,
        seed: int = 0,
    ) -> None:
        self.host, self.port = host, port
        self.journal = Journal()
        self._issuer = issuer
        self._routes = _ROUTES | dict(routes or {})
        self._tls = tls
        self._public_host = public_host or host
        self._now = now
        self._random = random.Random(seed)
        self._board = KnobBoard(knobs or Knobs())
        self._book = GrantBook(now)
        self._back = BackChannel(self._book)
        self._last_answers: dict[str, tuple[Response, Entry]] = {}  # by grant
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[Exception] = []
        self._changed = asyncio.Event()  # of the journal: set, and replaced, at every change

    # Life

    async def start(self) -> None:
        """Listen; a port of 0 becomes a free one."""
        self._listener = await asyncio.start_server(
            self._serve, self.host, self.port, limit=_MAX_HEAD, ssl=self._tls, backlog=1024
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and drop every connection. Raises what went wrong inside the server itself, if anything."""
        if self._listener is None:
            return
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._listener.wait_closed()
        self._listener = None
        if self._failures:
            raise ExceptionGroup("the hostile server has a fault of its own", self._failures)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Return scheme, host and port, without a slash at the end."""
        return f"{'https' if self._tls else 'http'}://{self._public_host}:{self.port}"

    @property
    def issuer(self) -> str:
        """Return the issuer identifier."""
        return self._issuer or self.url

    # Steering

    def tune(self, *, scope: str | None = None, **changes: object) -> None:
        """Set knobs for good, for everybody or for one client_id or grant id."""
        self._board.tune(scope=scope, **changes)

    def once(self, *, times: int = 1, scope: str | None = None, **changes: object) -> None:
        """Set knobs for the next *times* requests to the endpoints in `affects` (the token endpoint by default)."""
        self._board.once(times=times, scope=scope, **changes)

    def register(self, client_id: str, client_secret: str) -> None:
        """Demand this secret of this client; clients never registered need none."""
        self._back.client_secrets[client_id] = client_secret

    def revoke_grant(self, grant: str) -> None:
        """End a grant as its user would in the provider's own settings."""
        self._book.grants[grant].end(self._now())
        self._note_standing(self._book.grants[grant])
        self._tell()

    def reset(self) -> None:
        """Forget grants, clients, journal and settings."""
        self._board.reset()
        self._book = GrantBook(self._now)
        self._back = BackChannel(self._book)
        self._last_answers.clear()
        self.journal = Journal()

    # Watching

    def grant_of(self, token: str) -> str | None:
        """Return the grant id of an access or refresh token, dead ones too; None if it is not ours."""
        found = self._book.access_tokens.get(token) or self._book.refresh_tokens.get(token)
        return found.grant.id if found else None

    def accepts(self, token: str) -> bool:
        """Say whether this access or refresh token would be accepted now."""
        return bool(self._book.live_access_token(token) or self._book.live_refresh_token(token))

    def is_live(self, grant: str) -> bool:
        """Say whether the grant has a good refresh token now."""
        return bool(self._book.grants[grant].live_refresh_tokens(self._now()))

    async def until(self, predicate: Callable[[Journal], object], *, seconds: float = 10.0) -> None:
        """Wait until the journal satisfies *predicate*. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not predicate(self.journal):
                await self._changed.wait()

    async def settled(self, *, seconds: float = 10.0) -> Journal:
        """Wait until no answer is in preparation or on its way, then return the journal. Raises TimeoutError."""
        await self.until(lambda journal: not journal.unfinished(), seconds=seconds)
        return self.journal

    # Serving

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.journal.connections += 1
        connection = Connection(reader, writer)
        try:
            await self._converse(connection)
        except asyncio.CancelledError:
            # Only `stop` cancels; asyncio's own callback would report the cancellation as an error.
            connection.reset()
        except (ConnectionError, ssl.SSLError):
            pass  # the peer's doing
        except Exception as exc:  # a bug here must fail the test, not look like a provider's fault
            self._failures.append(exc)
        finally:
            self._tasks.discard(task)
            connection.close()

    async def _converse(self, connection: Connection) -> None:
        while connection.reusable:
            try:
                request = await connection.read_request()
            except (ValueError, asyncio.LimitOverrunError, asyncio.IncompleteReadError):
                await deliver(connection, Response(status=400, length="absent"), _UNFAULTED)
                return
            if request is None:
                return
            if request.path.startswith("/control/"):
                await deliver(connection, control(self, request), _UNFAULTED)
            else:
                await self._exchange(connection, request)

    async def _exchange(self, connection: Connection, request: Request) -> None:
        number = len(self.journal.entries) + 1
        endpoint = self._routes.get(request.path, "metadata" if request.path.startswith("/.well-known/") else "")
        entry = entry_of(request, self._book, number=number, at=self._now(), endpoint=endpoint)
        self.journal.append(entry)
        self._tell()
        knobs = self._board.resolve(entry.endpoint, client_id=entry.client_id, grant=entry.grant or None)
        faults = self._faults(entry, knobs)
        grant = self._book.grants.get(entry.grant) if entry.endpoint == "token" else None
        overlapping = grant is not None and grant.in_flight > 0
        if grant is not None:
            grant.in_flight += 1
        try:
            response = await self._respond(Call(request, entry, knobs), faults, overlapping=overlapping)
            response.headers.insert(0, ("Date", http_date(self._now(), knobs)))
            entry.status = response.status
            entry.delivered = await deliver(connection, response, faults)
        finally:
            entry.finished_at = self._now()
            if grant is not None:
                grant.in_flight -= 1
            self._tell()

    def _faults(self, entry: Entry, knobs: Knobs) -> Knobs:
        faults = knobs if entry.endpoint in knobs.affects else _UNFAULTED
        if entry.endpoint == "revoke" and knobs.revocation == "timeout":
            return dataclasses.replace(faults, stall_before_headers=_FOREVER)
        return faults

    async def _respond(self, call: Call, faults: Knobs, *, overlapping: bool) -> Response:
        entry = call.entry
        if faults.lose == "request":
            entry.outcome = "lost_request"
            return Response()
        await asyncio.sleep(faults.latency + faults.latency_jitter * self._random.random())
        if faults.answer is not None and not faults.answer.process:
            entry.outcome = "scripted"
            return spoilt(Response(), faults.answer)
        refusal = "busy" if overlapping and call.knobs.dialect == "salesforce_busy" else faults.refuse
        if refusal is not None:
            entry.outcome = refusal
            return refusal_answer(refusal, call.knobs)
        if faults.replay and (last := self._last_answers.get(entry.grant)) is not None:
            return self._again(entry, *last)
        response = self._process(call)
        self._tell()
        if faults.hold:
            await self._later_answer(entry)
        return response if faults.answer is None else spoilt(response, faults.answer)

    def _process(self, call: Call) -> Response:
        entry = call.entry
        match entry.endpoint:
            case "authorize":
                return front.authorize(call, self._book, self.issuer)
            case "metadata":
                return front.metadata(call, self.issuer, self.url)
            case "token":
                response = self._back.token(call, now=self._now())
            case "revoke":
                response = self._back.revoke(call)
            case "introspect":
                return self._back.introspect(call, now=self._now())
            case "userinfo":
                return self._back.userinfo(call)
            case "ping":
                return self._back.ping(call)
            case _:
                entry.outcome = "not_found"
                return Response(status=404, body=b"{}")
        if entry.grant:
            self._note_standing(self._book.grants[entry.grant])
        if entry.outcome == "issued":
            self._last_answers[entry.grant] = (dataclasses.replace(response, headers=list(response.headers)), entry)
        return response

    @staticmethod
    def _again(entry: Entry, response: Response, first: Entry) -> Response:
        """Return an earlier answer; if it is delivered this time, so are its tokens."""
        entry.outcome = "replayed_answer"
        entry.issued_access_token = first.issued_access_token
        entry.issued_refresh_token, entry.issued_serial = first.issued_refresh_token, first.issued_serial
        return dataclasses.replace(response, headers=list(response.headers))

    async def _later_answer(self, entry: Entry) -> None:
        """Wait until a later token request of the same grant has been answered, but not for ever."""

        def answered(journal: Journal) -> bool:
            later = (other for other in journal.token_requests() if other.number > entry.number)
            return any(other.grant == entry.grant and other.finished_at is not None for other in later)

        with contextlib.suppress(TimeoutError):
            await self.until(answered, seconds=_HOLD)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _note_standing(self, grant: Grant) -> None:
        now = self._now()
        ends = {fingerprint(token.value): token.dies_at for token in grant.live_refresh_tokens(now)}
        live = {mark: None if math.isinf(end) else end for mark, end in ends.items()}
        self.journal.note_standing(grant.id, Standing(at=now, live=live))
