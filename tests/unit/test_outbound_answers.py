"""One call that is answered: what is sent, what comes back, and what the client does not do on its own."""

import gzip

import pytest

from broker.errors import EgressRefused
from broker.outbound import Outbound
from tests.unit.outbound_servers import CANARY, Server, allowing, call, refresh, sends, serving, whole


async def test_the_answer_comes_back_whole() -> None:
    server = Server(sends(whole(b'{"a":1}', "Content-Type: application/json", "X-Two: 1", "x-two: 2", "X-Name: \xfc")))

    answer = await call(server)

    assert (answer.status, answer.body, answer.complete, answer.length_declared) == (200, b'{"a":1}', True, True)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-two"] == "1, 2"


async def test_an_error_status_is_an_answer() -> None:
    answer = await call(Server(sends(whole(b'{"error":"invalid_grant"}', status="400 Bad Request"))))

    assert (answer.status, answer.body) == (400, b'{"error":"invalid_grant"}')


async def test_the_request_leaves_as_it_was_built() -> None:
    server = Server(sends(whole(b"")))

    async with serving(server) as port, allowing(port) as outbound:
        await outbound.send(
            refresh(
                port, headers={"Host": "evil.example", "Accept-Encoding": "gzip", "Content-Length": "1", "X-A": "b"}
            ),
            hosts=["127.0.0.1"],
        )

    head, _, body = server.requests[0].decode().partition("\r\n\r\n")
    assert head.split("\r\n") == [
        "POST /token HTTP/1.1",
        f"host: 127.0.0.1:{port}",
        "accept-encoding: identity",
        "user-agent: Penstock/0.1.0",
        "x-a: b",
        f"Content-Length: {len(body)}",
    ]
    assert body == f"grant_type=refresh_token&refresh_token={CANARY}"


async def test_an_emulator_is_called_by_the_providers_name() -> None:
    server = Server(sends(whole(b"ok")))

    async with serving(server) as port:
        outbound = Outbound(provider_hosts={"github.com": f"http://127.0.0.1:{port}"})
        answer = await outbound.send(refresh(port, url="https://github.com/login"), hosts=["github.com"])
        await outbound.aclose()

    assert answer.body == b"ok"
    assert server.requests[0].startswith(b"POST /login HTTP/1.1\r\nhost: github.com\r\n")


@pytest.mark.parametrize("header", [("x", "a\r\nb: c"), ("x", "a\n"), ("x", "ü"), ("x y", "a"), ("", "a"), ("x", " a")])
async def test_a_header_that_could_split_the_request_is_refused(header: tuple[str, str]) -> None:
    server = Server(sends(whole(b"")))

    async with serving(server) as port, allowing(port) as outbound:
        with pytest.raises(EgressRefused):
            await outbound.send(refresh(port, headers=dict([header])), hosts=["127.0.0.1"])

    assert server.requests == []


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
@pytest.mark.parametrize("location", ["http://127.0.0.1:{port}/", "//127.0.0.1:{port}/", "https://evil.example/", "::"])
async def test_a_redirect_is_not_followed(status: str, location: str) -> None:
    """T-19: it is the answer; the secret is not sent again."""
    wire = Server(sends(whole(b"")))
    async with serving(wire) as wire_port:
        server = Server(sends(whole(b"", f"Location: {location.format(port=wire_port)}", status=status)))
        async with serving(server) as port, allowing(port, wire_port) as outbound:
            answer = await outbound.send(refresh(port), hosts=["127.0.0.1"])

    assert answer.status == int(status[:3])
    assert (len(server.requests), wire.requests) == (1, [])


async def test_no_connection_and_no_cookie_is_used_twice() -> None:
    server = Server(sends(whole(b"", "Set-Cookie: session=1; Path=/", "Connection: keep-alive"), then=0.1))

    async with serving(server) as port, allowing(port) as outbound:
        for _ in range(3):
            await outbound.send(refresh(port), hosts=["127.0.0.1"])

    assert len(server.requests) == 3  # one per connection
    assert not any(b"cookie" in request.lower() for request in server.requests)


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Server(sends(whole(b"")))
    async with serving(wire) as wire_port:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{wire_port}")
        answer = await call(Server(sends(whole(b"direct"))))

    assert (answer.body, wire.requests) == (b"direct", [])


async def test_a_compressed_body_is_not_unpacked() -> None:
    bomb = gzip.compress(b"0" * 10_000_000)

    answer = await call(Server(sends(whole(bomb, "Content-Encoding: gzip"))))

    assert answer.body == bomb


async def test_a_body_that_ends_with_the_connection_says_so() -> None:
    answer = await call(Server(sends(b"HTTP/1.1 200 OK\r\n\r\naccess_token=gho_1&refresh_tok")))

    assert (answer.body, answer.complete, answer.length_declared) == (b"access_token=gho_1&refresh_tok", True, False)


async def test_a_chunked_body_and_an_empty_one_have_a_declared_end() -> None:
    chunked = await call(Server(sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")))
    empty = await call(Server(sends(b"HTTP/1.1 204 No Content\r\n\r\n")))

    assert (chunked.body, chunked.length_declared, empty.length_declared) == (b"{}", True, True)
