"""The hostile server's other endpoints, its journal, its TLS and its life as a process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from typing import get_args

import httpx
import pytest

from tests.hostile import HostileServer, Journal, Knobs, fingerprint
from tests.hostile.client import PlainClient
from tests.hostile.tls import Authority, Flaw


@pytest.fixture
async def server() -> AsyncIterator[HostileServer]:
    async with HostileServer() as running:
        yield running


@pytest.fixture
async def client(server: HostileServer) -> AsyncIterator[PlainClient]:
    async with PlainClient(server) as plain:
        yield plain


@pytest.mark.parametrize(("knob", "status", "live"), [("200", 200, False), ("400", 400, True), ("503", 503, True)])
async def test_revocation_answers(
    server: HostileServer, client: PlainClient, knob: str, status: int, live: bool
) -> None:
    """Only a 200 has revoked anything."""
    grant = await client.connect()
    server.tune(revocation=knob)
    assert (await client.post("/revoke", token=client.tokens["refresh_token"])).status_code == status
    assert server.is_live(grant) is live
    assert server.journal.is_live(grant) is live
    assert server.journal.revocations()[0].token == fingerprint(client.tokens["refresh_token"])
    assert await client.lives() is live


async def test_revocation_can_hang_or_redirect(server: HostileServer, client: PlainClient) -> None:
    """Neither revokes."""
    grant = await client.connect()
    server.tune(revocation="redirect")
    assert (await client.post("/revoke", token=client.tokens["refresh_token"])).status_code == 307
    server.tune(revocation="timeout")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.post("/revoke", token=client.tokens["refresh_token"]), 0.1)
    assert server.is_live(grant)


async def test_introspection_and_userinfo_know_the_token(server: HostileServer, client: PlainClient) -> None:
    """RFC 7662 §2.2: a dead token is merely inactive."""
    server.tune(subject="ada")
    grant = await client.connect()
    token = client.tokens["access_token"]
    facts = (await client.post("/introspect", token=token)).json()
    assert (facts["active"], facts["sub"], facts["scope"]) == (True, "ada", "read write")
    async with httpx.AsyncClient() as http:
        bearer = {"Authorization": f"Bearer {token}"}
        assert (await http.get(f"{server.url}/userinfo", headers=bearer)).json()["sub"] == "ada"
    server.revoke_grant(grant)
    assert (await client.post("/introspect", token=token)).json() == {"active": False}
    assert not await client.lives()


async def test_aliases_and_outages(client: PlainClient) -> None:
    """A descriptor's own paths can be served, and a stopped server comes back with everything it knew."""
    async with HostileServer(routes={"/services/oauth2/token": "token"}) as server, PlainClient(server) as plain:
        await plain.connect()
        token = plain.tokens["refresh_token"]
        await server.stop()
        with pytest.raises(httpx.ConnectError):
            await plain.refresh()
        await server.start()
        form = {"grant_type": "refresh_token", "refresh_token": token}
        assert (await plain.post("/services/oauth2/token", **form)).status_code == 200


async def test_the_journal_holds_no_secret(server: HostileServer, client: PlainClient) -> None:
    """It crosses to another process as fingerprints only."""
    client.client_secret = "CANARY_SECRET_of_the_client"
    grant = await client.connect()
    await client.refresh()
    await client.post("/revoke", token=client.tokens["access_token"])
    data = (await server.settled()).to_json()
    assert b"CANARY" not in data
    assert client.verifier.encode() not in data
    assert Journal.from_json(data) == server.journal
    assert server.journal.grants == [grant]
    assert len(server.journal.codes_exchanged()) == 1


@pytest.mark.parametrize("flaw", get_args(Flaw))
async def test_tls_flaws_are_refused_by_a_careful_client(flaw: Flaw) -> None:
    """Only the flawless server is heard of; the journal of the others stays empty."""
    authority = Authority()
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    async with HostileServer(tls=authority.context(flaw)) as server, httpx.AsyncClient(verify=context) as http:
        if flaw == "none":
            assert (await http.get(f"{server.url}/api/ping")).status_code == 401
            assert (await server.settled()).entries[0].delivered
            return
        expected = httpx.ReadError if flaw == "client_certificate" else httpx.ConnectError
        with pytest.raises(expected):
            await http.get(f"{server.url}/api/ping")
        assert not server.journal.entries


async def test_a_process_of_its_own_is_steered_by_control_requests() -> None:
    """`python -m tests.hostile` prints its address, takes knobs, tells its journal, and ends on SIGTERM."""
    arguments = ("-m", "tests.hostile", "--knobs", '{"rotation": "R5"}')
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        url = json.loads(await process.stdout.readline())["url"]
        async with httpx.AsyncClient(base_url=url) as http:
            refused = await http.post("/control/knobs", json={"knobs": {"rotation": "R9"}})
            assert (refused.status_code, "R9" in refused.text) == (400, True)
            answer = {"status": 418, "body": "aGVsbG8="}
            await http.post("/control/knobs", json={"knobs": {"answer": answer}, "times": 1})
            scripted, plain = await http.post("/token"), await http.post("/token")
            assert (scripted.status_code, scripted.text, plain.status_code) == (418, "hello", 400)
            journal = Journal.from_json((await http.get("/control/journal")).content)
            assert [entry.outcome for entry in journal.entries] == ["scripted", "unsupported_grant_type"]
            await http.post("/control/reset", json={})
            assert not Journal.from_json((await http.get("/control/journal")).content).entries
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == os.EX_OK


async def test_a_fault_of_the_server_itself_is_not_taken_for_a_hostile_one() -> None:
    """`stop` raises it."""
    server = HostileServer(knobs=Knobs(extra={"unencodable": object()}))
    await server.start()
    async with PlainClient(server) as plain:
        with pytest.raises(httpx.RemoteProtocolError):
            await plain.connect()
    with pytest.raises(ExceptionGroup, match="fault of its own"):
        await server.stop()
