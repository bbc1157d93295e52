"""The hostile server loses, delays and spoils answers as told, and its journal knows what was delivered."""

from __future__ import annotations

import asyncio
import gzip
import socket
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.hostile import Answer, HostileServer, fingerprint, payloads
from tests.hostile.client import PlainClient
from tests.hostile.knobs import Loss

FORM = "application/x-www-form-urlencoded"


@pytest.fixture
async def server() -> AsyncIterator[HostileServer]:
    async with HostileServer() as running:
        yield running


@pytest.fixture
async def client(server: HostileServer) -> AsyncIterator[PlainClient]:
    async with PlainClient(server) as plain:
        yield plain


async def read_into(received: bytearray, response: httpx.Response) -> None:
    async for chunk in response.aiter_raw():
        received += chunk


# Loss


async def test_an_answer_read_to_its_end_counts_as_delivered(server: HostileServer, client: PlainClient) -> None:
    """The peer's TCP has acknowledged the last byte."""
    grant = await client.connect()
    await client.refresh()
    journal = await server.settled()
    assert [entry.delivered for entry in journal.token_requests()] == [True, True]
    assert journal.delivered_refresh_tokens(grant) >= {fingerprint(client.tokens["refresh_token"])}


async def test_a_lost_request_leaves_the_grant_untouched(server: HostileServer, client: PlainClient) -> None:
    """The connection is reset, the refresh token unspent."""
    grant = await client.connect()
    server.once(lose="request")
    with pytest.raises(httpx.ReadError):
        await client.refresh()
    assert server.accepts(client.tokens["refresh_token"])
    assert (await server.settled()).refreshes(grant)[0].outcome == "lost_request"
    assert (await client.refresh()).status_code == 200


@pytest.mark.parametrize(
    ("loss", "error"),
    [
        ("response", httpx.ReadError),
        ("body", httpx.ReadError),
        ("half_close", httpx.RemoteProtocolError),
    ],
)
async def test_a_lost_response_spends_the_token_undelivered(
    server: HostileServer, client: PlainClient, loss: Loss, error: type[Exception]
) -> None:
    """The tokens have rotated; the client sees a broken connection, and the journal that nothing arrived whole."""
    grant = await client.connect()
    server.once(lose=loss)
    with pytest.raises(error):
        await client.refresh()
    entry = (await server.settled()).refreshes(grant)[0]
    assert (entry.outcome, entry.delivered) == ("issued", False)
    assert not server.accepts(client.tokens["refresh_token"])
    assert server.is_live(grant)
    assert server.journal.live_refresh_tokens(grant).isdisjoint(server.journal.delivered_refresh_tokens(grant))


async def test_half_a_body_arrives_before_the_reset(server: HostileServer, client: PlainClient) -> None:
    """A client that keeps partial bodies has something to keep."""
    server.tune(lose="body", answer=Answer(body=b"x" * 1000))
    received = bytearray()
    async with httpx.AsyncClient() as http, http.stream("POST", f"{server.url}/token") as response:
        with pytest.raises(httpx.ReadError):
            await read_into(received, response)
    assert received == b"x" * 500


async def test_an_endless_body_ends_when_the_client_leaves(server: HostileServer, client: PlainClient) -> None:
    """Nobody but the client can end it."""
    server.tune(lose="endless")
    async with httpx.AsyncClient() as http, http.stream("POST", f"{server.url}/token") as response:
        received = 0
        async for chunk in response.aiter_raw():
            received += len(chunk)
            if received > 10_000:
                break
    assert (await server.settled()).token_requests()[0].delivered is False


async def test_a_client_that_gives_up_has_not_been_delivered_to(server: HostileServer, client: PlainClient) -> None:
    """It left during the stall; the tokens rotated all the same."""
    grant = await client.connect()
    server.once(stall_before_headers=30.0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.refresh(), 0.1)
    entry = (await server.settled(seconds=2.0)).refreshes(grant)[0]
    assert (entry.outcome, entry.delivered) == ("issued", False)


async def test_bytes_the_peer_never_acknowledged_are_not_delivered(server: HostileServer, client: PlainClient) -> None:
    """The server's kernel took them all, but the peer had no room for them, and left."""
    server.tune(extra={"padding": "x" * 500_000})
    await client.post("/token", grant_type="client_credentials")
    with socket.socket() as full:
        full.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        full.connect((server.host, server.port))
        body = b"grant_type=client_credentials&client_id=app"
        head = f"POST /token HTTP/1.1\r\nContent-Type: {FORM}\r\nContent-Length: {len(body)}\r\n\r\n"
        full.sendall(head.encode() + body)
        await server.until(lambda journal: len(journal.token_requests()) == 2)
        await asyncio.sleep(0.05)
    read, unread = (await server.settled()).token_requests()
    assert (read.outcome, read.delivered) == ("issued", True)
    assert (unread.outcome, unread.delivered) == ("issued", False)


async def test_duplicate_writes_the_answer_twice(server: HostileServer) -> None:
    """The second copy follows on the same connection."""
    server.once(duplicate=True, answer=Answer(body=b"once"))
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(b"POST /token HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.read()).count(b"\r\n\r\nonce") == 2
    writer.close()


async def test_hold_delivers_an_answer_after_a_later_one(server: HostileServer, client: PlainClient) -> None:
    """The refresh processed first is answered last."""
    server.tune(rotation="R1")
    grant = await client.connect()
    token = client.tokens["refresh_token"]
    server.once(hold=True)
    held = asyncio.create_task(client.refresh(token))
    await server.until(lambda journal: any(entry.outcome == "issued" for entry in journal.refreshes(grant)))
    await client.refresh(token)
    assert not held.done()
    await held
    first, second = (await server.settled()).refreshes(grant)
    assert first.issued_serial < second.issued_serial
    assert (second.finished_at or 0.0) <= (first.finished_at or 0.0)


async def test_replay_repeats_the_previous_answer(server: HostileServer, client: PlainClient) -> None:
    """Nothing is issued; the tokens that were lost the first time arrive after all."""
    grant = await client.connect()
    server.once(lose="response")
    with pytest.raises(httpx.ReadError):
        await client.refresh()
    server.once(replay=True)
    await client.refresh()
    first, again = (await server.settled()).refreshes(grant)
    assert (again.outcome, again.issued_serial) == ("replayed_answer", first.issued_serial)
    assert fingerprint(client.tokens["refresh_token"]) in server.journal.delivered_refresh_tokens(grant)
    assert server.accepts(client.tokens["refresh_token"])


# Timing


@pytest.mark.parametrize("knob", ["latency", "latency_jitter", "stall_before_headers", "stall_in_body"])
async def test_an_answer_takes_its_time(server: HostileServer, client: PlainClient, knob: str) -> None:
    """Before processing, before the headers, in the middle of the body."""
    seconds: dict[str, object] = {knob: 0.1}
    server.once(answer=Answer(body=b"0123456789"), scope=None, times=1, **seconds)
    began = time.monotonic()
    assert (await client.post("/token")).content == b"0123456789"
    assert time.monotonic() - began >= (0.08 if knob == "latency_jitter" else 0.1)  # seed 0 draws 0.84


async def test_the_journal_knows_the_busiest_moment(server: HostileServer, client: PlainClient) -> None:
    """Three at once, then one."""
    server.once(times=3, latency=0.1)
    await asyncio.gather(*(client.post("/token") for _ in range(3)))
    await client.post("/token")
    assert (await server.settled()).most_at_once() == 3


async def test_a_drip_comes_byte_by_byte(server: HostileServer) -> None:
    """Each byte is a write of its own."""
    server.once(answer=Answer(body=b"0123456789"), drip_seconds_per_byte=0.01)
    began = time.monotonic()
    async with httpx.AsyncClient() as http, http.stream("POST", f"{server.url}/token") as response:
        chunks = [chunk async for chunk in response.aiter_raw()]
    assert time.monotonic() - began >= 0.09
    assert b"".join(chunks) == b"0123456789"
    assert len(chunks) > 5


# Scripted answers


async def test_the_queue_is_served_in_order_then_ends(server: HostileServer, client: PlainClient) -> None:
    """Two redirects, one page of HTML, then the truth."""
    grant = await client.connect()
    server.once(times=2, answer=payloads.redirect(307, "http://elsewhere.test/token"))
    server.once(answer=payloads.HTML)
    answers = [await client.refresh() for _ in range(4)]
    assert [answer.status_code for answer in answers] == [307, 307, 200, 200]
    assert answers[2].headers["content-type"] == "text/html"
    outcomes = [entry.outcome for entry in server.journal.refreshes(grant)]
    assert outcomes == ["scripted", "scripted", "scripted", "issued"]


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        (payloads.BOM, True),
        (payloads.TEXT_HTML, True),
        (payloads.NO_CONTENT_TYPE, True),
        (payloads.CLOSE_DELIMITED, True),
        (payloads.TRUNCATED, False),
        (payloads.CUT_BY_CLOSE, False),
        (payloads.REPLACED_BY_HTML, False),
        (payloads.FAILED_AFTERWARDS, False),
    ],
)
async def test_spoilt_answers_rotate_and_count_only_when_whole(
    server: HostileServer, client: PlainClient, answer: Answer, whole: bool
) -> None:
    """Delivered means that the genuine tokens were in what arrived."""
    grant = await client.connect()
    server.once(answer=answer)
    response = await client.post("/token", grant_type="refresh_token", refresh_token=client.tokens["refresh_token"])
    assert response.status_code == answer.status
    assert response.content.startswith(answer.prefix)
    entry = (await server.settled()).refreshes(grant)[0]
    assert (entry.outcome, entry.delivered) == ("issued", whole)
    assert not server.accepts(client.tokens["refresh_token"])


async def test_a_body_shorter_than_promised_is_not_delivered(server: HostileServer, client: PlainClient) -> None:
    """Content-Length speaks of the uncut body."""
    grant = await client.connect()
    server.once(answer=payloads.SHORT)
    with pytest.raises(httpx.RemoteProtocolError):
        await client.refresh()
    assert (await server.settled()).refreshes(grant)[0].delivered is False


async def test_the_gzip_bomb_is_small_on_the_wire(server: HostileServer) -> None:
    """A client that asked for identity gets it all the same."""
    server.once(answer=payloads.gzip_bomb(1 << 20))
    async with httpx.AsyncClient() as http:
        request = http.build_request("POST", f"{server.url}/token", headers={"Accept-Encoding": "identity"})
        response = await http.send(request, stream=True)
        raw = b"".join([chunk async for chunk in response.aiter_raw()])
    assert len(raw) < 10_000
    assert len(gzip.decompress(raw)) > 1 << 20


async def test_knobs_are_checked_and_scoped(server: HostileServer, client: PlainClient) -> None:
    """A wrong knob is refused; a client's and a grant's own settings go before those of everybody."""
    with pytest.raises(ValueError, match="no such knob: rotatoin"):
        server.tune(rotatoin="R5")
    with pytest.raises(ValueError, match="Invalid enum value 'R9'"):
        server.tune(rotation="R9")
    grant, other = await client.connect(), await client.connect()
    server.tune(refuse="server_error")
    server.tune(scope="app", refuse="throttled")
    server.tune(scope=grant, refuse=None)
    assert (await client.refresh()).status_code == 429
    async with PlainClient(server, client_id="stranger") as stranger:
        assert (await stranger.refresh("CANARY_RT_unknown")).status_code == 500
    server.tune(scope=other, refuse=None)
    assert (await client.refresh()).status_code == 200
