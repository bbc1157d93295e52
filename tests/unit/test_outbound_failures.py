"""One call that fails: whether the request counts as not sent or as in doubt, and what is kept of the answer."""

import asyncio
import socket
import traceback
from collections.abc import Sequence
from datetime import timedelta

import httpcore
import pytest

from broker.errors import ProviderUnavailable
from broker.oauth.http import HttpRequest
from broker.outbound import Outbound, SendFailed, SendState
from tests.unit.outbound_servers import (
    CANARY,
    SOON,
    Answer,
    Server,
    allowing,
    call,
    refresh,
    resets,
    sends,
    serving,
    whole,
)

# --- not sent ------------------------------------------------------------------------------------------------------


async def failed_before_sending(outbound: Outbound, url: str, host: str = "127.0.0.1") -> SendFailed:
    sending: list[bool] = []
    with pytest.raises(SendFailed) as caught:
        await outbound.send(
            HttpRequest(method="POST", url=url), hosts=[host], on_sending=lambda: sending.append(True), deadline=SOON
        )
    assert caught.value.state is SendState.NOT_SENT
    assert (caught.value.partial, sending) == (None, [])
    return caught.value


async def test_a_refused_connection_is_not_sent() -> None:
    with socket.socket() as taken:  # bound, not listening
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with allowing(port) as outbound:
            failure = await failed_before_sending(outbound, f"http://127.0.0.1:{port}/")

    assert failure.reason == "connect"
    assert isinstance(failure, ProviderUnavailable)
    assert failure.elapsed < timedelta(seconds=1)


async def test_a_name_that_does_not_resolve_is_not_sent() -> None:
    async def unknown(_host: str, _port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    outbound = Outbound(resolve=unknown)

    assert (await failed_before_sending(outbound, "https://gone.example/", "gone.example")).reason == "resolve"
    await outbound.aclose()


async def test_a_name_server_that_keeps_silent_is_not_sent() -> None:
    async def silent(_host: str, _port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    outbound = Outbound(resolve=silent, connect_timeout=SOON)

    assert (await failed_before_sending(outbound, "https://slow.example/", "slow.example")).reason == "resolve"
    await outbound.aclose()


async def test_a_slow_connect_is_not_sent() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]  # they fill the backlog; the next SYN is dropped
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        async with allowing(port, connect_timeout=SOON) as outbound:
            failure = await failed_before_sending(outbound, f"http://127.0.0.1:{port}/")
        for client in waiting:
            client.close()

    assert failure.reason == "connect"
    assert failure.elapsed >= SOON


async def test_a_call_without_a_free_connection_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.outbound.exchange._POOL", 0.1)
    server = Server(sends(then=60))
    async with serving(server) as port, allowing(port, max_connections=1) as outbound:
        first = asyncio.create_task(outbound.send(refresh(port), hosts=["127.0.0.1"], deadline=2 * SOON))
        await server.asked.wait()
        failure = await failed_before_sending(outbound, f"http://127.0.0.1:{port}/")
        with pytest.raises(SendFailed):
            await first

    assert failure.reason == "pool"


async def test_a_caller_that_says_no_at_the_last_moment_sends_nothing() -> None:
    def no() -> None:
        raise PermissionError("lease lost")

    class Lost(Exception):
        pass

    def lost() -> None:
        raise Lost

    server = Server(sends(whole(b"")))
    async with serving(server) as port, allowing(port) as outbound:
        with pytest.raises(Lost):
            await outbound.send(refresh(port), hosts=["127.0.0.1"], on_sending=lost)
        with pytest.raises(SendFailed) as caught:
            await outbound.send(refresh(port), hosts=["127.0.0.1"], on_sending=no)

    assert caught.value.state is SendState.NOT_SENT
    assert server.requests == []


async def failed_call(answer: Answer, **options: object) -> SendFailed:
    with pytest.raises(SendFailed) as caught:
        await call(Server(answer), **{"deadline": SOON, **options})
    return caught.value


# --- in doubt ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(sends(), id="closes"),
        pytest.param(resets, id="resets"),
        pytest.param(sends(b"HTTP/1.1 200 OK\r\nContent-"), id="closes in the headers"),
        pytest.param(sends(b"SSH-2.0-OpenSSH_9.2\r\n"), id="speaks something else"),
        pytest.param(sends(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), id="two lengths"),
        pytest.param(sends(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 50_000 + b"\r\n"), id="endless headers"),
    ],
)
async def test_a_connection_that_breaks_after_the_request_is_in_doubt(answer: Answer) -> None:
    failure = await failed_call(answer)

    assert (failure.state, failure.reason, failure.partial) == (SendState.IN_DOUBT, "reset", None)


async def test_silence_is_in_doubt_at_the_deadline() -> None:
    failure = await failed_call(sends(then=60))

    assert (failure.state, failure.reason, failure.partial) == (SendState.IN_DOUBT, "deadline", None)
    assert SOON <= failure.elapsed < 5 * SOON


async def test_informational_answers_without_end_are_cut_at_the_deadline() -> None:
    failure = await failed_call(sends(*[b"HTTP/1.1 100 Continue\r\n\r\n"] * 1000, every=0.02))

    assert (failure.state, failure.reason) == (SendState.IN_DOUBT, "deadline")


async def test_a_stall_in_the_body_keeps_what_came() -> None:
    failure = await failed_call(
        sends(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\nDate: x\r\n\r\n{"refresh_token":"r', then=60)
    )

    assert (failure.state, failure.reason) == (SendState.IN_DOUBT, "deadline")
    assert failure.partial is not None
    assert (failure.partial.status, failure.partial.headers["date"]) == (200, "x")
    assert (failure.partial.body, failure.partial.complete) == (b'{"refresh_token":"r', False)


async def test_a_drip_is_cut_at_the_deadline_though_each_byte_is_in_time() -> None:
    """T-30: the limit is on the answer, not on the wait for its next piece."""
    failure = await failed_call(sends(b"HTTP/1.1 200 OK\r\n\r\n", *[b"x"] * 1000, every=0.05), deadline=2 * SOON)

    assert (failure.state, failure.reason) == (SendState.IN_DOUBT, "deadline")
    assert failure.elapsed < 5 * SOON
    assert failure.partial is not None
    assert 5 <= len(failure.partial.body) <= 20
    assert not failure.partial.complete


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Content-Length: 99\r\n\r\n", b'{"access_token":"a'),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\n", b'{"acc'),
    ],
)
async def test_a_body_shorter_than_declared_is_in_doubt_and_kept(head: bytes, body: bytes) -> None:
    failure = await failed_call(sends(b"HTTP/1.1 200 OK\r\n" + head + body))

    assert (failure.state, failure.reason) == (SendState.IN_DOUBT, "reset")
    assert failure.partial is not None
    assert (failure.partial.body, failure.partial.complete) == (body, False)


@pytest.mark.parametrize("head", [b"Content-Length: 10000000\r\n\r\n", b"\r\n"])
async def test_a_body_beyond_the_limit_is_cut_and_kept_up_to_it(head: bytes) -> None:
    failure = await failed_call(sends(b"HTTP/1.1 200 OK\r\n" + head, b"x" * 10_000_000), max_bytes=1000)

    assert (failure.state, failure.reason) == (SendState.IN_DOUBT, "too_large")
    assert failure.partial is not None
    assert (failure.partial.body, failure.partial.complete) == (b"x" * 1000, False)


async def test_a_body_of_just_the_limit_is_accepted() -> None:
    assert len((await call(Server(sends(whole(b"x" * 1000))), max_bytes=1000)).body) == 1000


async def test_a_body_in_countless_pieces_is_cut_and_lets_others_run_meanwhile() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(others())
    chunks = sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 100_000)
    failure = await failed_call(chunks, deadline=timedelta(seconds=30))
    running.cancel()

    assert (failure.state, failure.reason) == (SendState.IN_DOUBT, "too_large")
    assert turns > 60_000  # one per piece


async def test_a_server_that_stops_reading_leaves_the_request_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.outbound.exchange._WRITE", 0.2)
    async with serving(Server(sends(then=60), reads=False)) as port, allowing(port) as outbound:
        with pytest.raises(SendFailed) as caught:
            await outbound.send(refresh(port, body=b"x" * 50_000_000), hosts=["127.0.0.1"])

    assert (caught.value.state, caught.value.reason) == (SendState.IN_DOUBT, "timeout")


async def test_sending_as_a_whole_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.outbound.client.SENDING", 0.2)
    async with serving(Server(sends(then=60), reads=False)) as port, allowing(port) as outbound:
        with pytest.raises(SendFailed) as caught:
            await outbound.send(refresh(port, body=b"x" * 50_000_000), hosts=["127.0.0.1"])

    assert (caught.value.state, caught.value.reason) == (SendState.IN_DOUBT, "timeout")


# --- around a failure ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(sends(f'{{"access_token":"{CANARY}"}}\r\n'.encode()), id="body instead of a status line"),
        pytest.param(sends(f"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{CANARY}".encode()), id="cut body"),
    ],
)
async def test_a_failure_repeats_neither_request_nor_answer(answer: Answer) -> None:
    """Not even to an error reporter that prints the local variables of every frame and every cause."""
    failure = await failed_call(answer)

    frames = traceback.TracebackException.from_exception(failure, capture_locals=True).stack
    ours = [frame.locals or {} for frame in frames if "tests" not in frame.filename]
    assert ours
    assert CANARY not in f"{ours} {failure} {failure!r}"
    assert failure.__cause__ is failure.__context__ is None


async def test_a_connection_that_cannot_be_closed_takes_no_answer_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(_answer: httpcore.Response) -> None:
        raise OSError

    monkeypatch.setattr(httpcore.Response, "aclose", fails)

    assert (await call(Server(sends(whole(b"ok"))))).body == b"ok"


async def test_failures_give_their_connection_back() -> None:
    answers = [
        sends(),
        resets,
        sends(then=60),
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"),
        sends(b"?\r\n\r\n"),
    ]
    async with serving(Server(sends(whole(b"ok")))) as good:
        for answer in answers:
            async with serving(Server(answer)) as bad, allowing(good, bad, max_connections=1) as outbound:
                with pytest.raises(SendFailed):
                    await outbound.send(refresh(bad), hosts=["127.0.0.1"], deadline=SOON)
                assert (await outbound.send(refresh(good), hosts=["127.0.0.1"])).body == b"ok"


async def test_a_cancelled_call_closes_its_connection() -> None:
    async def until_closed(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()
        server.closed_by_us.set()

    server = Server(until_closed)
    async with serving(server) as port, allowing(port) as outbound:
        task = asyncio.create_task(outbound.send(refresh(port), hosts=["127.0.0.1"]))
        await server.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.closed_by_us.wait(), 5)


async def test_a_dripping_provider_slows_no_other_call() -> None:
    drip, good = Server(sends(b"HTTP/1.1 200 OK\r\n\r\n", *[b"x"] * 1000, every=0.01)), Server(sends(whole(b"ok")))
    async with serving(drip) as slow, serving(good) as fast, allowing(slow, fast) as outbound:
        dripping = [
            asyncio.create_task(outbound.send(refresh(slow), hosts=["127.0.0.1"], deadline=timedelta(seconds=2)))
            for _ in range(20)
        ]
        async with asyncio.timeout(2):
            answers = [await outbound.send(refresh(fast), hosts=["127.0.0.1"]) for _ in range(20)]
        assert not any(task.done() for task in dripping)
        failures = await asyncio.gather(*dripping, return_exceptions=True)

    assert [answer.body for answer in answers] == [b"ok"] * 20
    assert all(isinstance(failure, SendFailed) for failure in failures)
