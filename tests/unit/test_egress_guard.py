"""The egress guard: a URL is sent to the host that it names and the provider owns, or not at all."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpcore
import pytest

from broker.errors import ConfigurationError, EgressRefused
from broker.oauth.http import HttpRequest
from broker.outbound import Outbound
from broker.outbound.backend import PinnedBackend
from broker.outbound.guard import Guard

PUBLIC = "140.82.121.4"


@asynccontextmanager
async def trip_wire() -> AsyncIterator[tuple[int, list[str]]]:
    """Listen on loopback; yield the port and the list of those who connected."""
    seen: list[str] = []

    async def tripped(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(str(writer.get_extra_info("peername")))
        writer.close()

    server = await asyncio.start_server(tripped, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()


class Recorder(httpcore.AsyncNetworkBackend):
    """Stand where TCP begins: a public address cannot be reached from a test, but who would be called can be told."""

    def __init__(self, *, dead: Sequence[str] = ()) -> None:
        self.called: list[str] = []
        self._dead = dead

    async def connect_tcp(self, host: str, *_: object, **__: object) -> httpcore.AsyncNetworkStream:
        self.called.append(host)
        if host in self._dead:
            raise httpcore.ConnectError
        return httpcore.AsyncMockStream([])


class Names:
    """Answer name lookups from a script, the last answer for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.asked = 0
        self._answers = list(answers)

    async def __call__(self, _host: str, _port: int) -> Sequence[str]:
        self.asked += 1
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def backend(names: Names, tcp: Recorder, guard: Guard | None = None) -> PinnedBackend:
    return PinnedBackend(guard or Guard(), names, connect_timeout=1.0, tcp=tcp)


# --- the URL -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host", "target"),
    [
        ("https://github.com/login/oauth/access_token", "github.com", b"/login/oauth/access_token"),
        ("HTTPS://GitHub.COM", "github.com", b"/"),
        ("https://github.com:443/a?b=c%20d", "github.com", b"/a?b=c%20d"),
        ("https://acme--dev.my.salesforce.com/services", "acme--dev.my.salesforce.com", b"/services"),
        ("https://bücher.example/ü", "xn--bcher-kva.example", b"/%C3%BC"),
    ],
)
def test_a_plain_https_url_of_the_provider_is_admitted(url: str, host: str, target: bytes) -> None:
    to = Guard().admit(url, ["github.com", ".my.salesforce.com", "xn--bcher-kva.example"])

    assert (to.scheme, to.host, to.port, to.target, to.host_header) == ("https", host, 443, target, host)
    assert host not in repr(to)


REFUSED = [
    *("http://good.example/", "ftp://good.example/", "javascript:alert(1)", "data:,x", "file:///etc/passwd"),
    *("", "good.example", "//good.example/", "https:good.example", "https:///good.example", "https://"),
    *("https://user@good.example/", "https://user:pw@good.example/", "https://:pw@good.example/"),
    *("https://good.example/#x", "https://good.example/#"),
    *(
        "https://good.example:8443/",
        "https://good.example:80/",
        "https://good.example:99999/",
        "https://good.example:x/",
    ),
    *(
        "https://evil.example/",
        "https://notgood.example/",
        "https://good.example.evil.example/",
        "https://sub.good.example",
    ),
    *("https://good.example./", "https://localhost/", "https://localhost./", "https://good/", "https://.good.example/"),
    *("https://good..example/", "https://-good.example/", "https://good_.example/", f"https://{'a' * 64}.example/"),
    *("https://good.example/a b", "https://good.example/a\\b", "https://good.example/\x7f"),
    *("https://go\nod.example/", "https://good.example\t/", "https://good.example /", "https://good.example/\r\nx: y"),
    *("https://good.example\\@evil.example/", "https://good.example\\.evil.example/", "https://good.example\x00/"),
    *("https://1.1.1.1 &@2.2.2.2# @3.3.3.3/", "https://evil。example/", "https://good%2eexample/"),
    *(
        "https://1.1.1.1/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[fe80::1%25lo]/",
    ),
    *("https://0177.0.0.1/", "https://0x7f.1/", "https://0x7f.0x1/", "https://127.1/", "https://2130706433/"),
    *("https://017700000001/", "https://0/", "https://①②⑦.0.0.1/", "https://127。0。0。1/", "https://a.0x/"),
    "unix:///var/run/docker.sock",
]


@pytest.mark.parametrize("url", REFUSED)
def test_any_other_url_is_refused_without_being_repeated(url: str) -> None:
    hosts = [
        "good.example",
        "good",
        "localhost",
        "127.0.0.1",
        "1.1.1.1",
        "2.2.2.2",
        "0177.0.0.1",
        "0x7f.1",
        "127.1",
        "0",
    ]

    with pytest.raises(EgressRefused) as caught:
        Guard().admit(url, hosts)

    assert caught.value.__cause__ is caught.value.__context__ is None
    assert not any(word in caught.value.message for word in ("evil", "good", "127", "pw"))


def test_without_a_host_rule_nothing_is_admitted() -> None:
    with pytest.raises(EgressRefused):
        Guard().admit("https://github.com/", [])


async def test_a_refused_url_opens_no_connection() -> None:
    """T-17: the listener on the target sees nothing, whatever form the address takes."""
    async with trip_wire() as (port, seen):
        outbound = Outbound()
        for host in (
            "127.0.0.1",
            "localhost",
            "localhost.",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "0177.1",
            "2130706433",
            "0",
        ):
            for scheme in ("https", "http"):
                with pytest.raises(EgressRefused):
                    await outbound.send(
                        HttpRequest(method="GET", url=f"{scheme}://{host}:{port}/"), hosts=[host.strip("[]")]
                    )
        await outbound.aclose()

    assert seen == []


# --- the addresses behind the name -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "::1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
    ],
)
async def test_a_name_that_leads_inside_is_refused(address: str) -> None:
    outbound = Outbound(resolve=Names([address]))

    with pytest.raises(EgressRefused):
        await outbound.send(HttpRequest(method="GET", url="https://good.example/"), hosts=["good.example"])
    await outbound.aclose()


async def test_one_private_address_among_public_ones_refuses_them_all() -> None:
    tcp = Recorder()

    with pytest.raises(EgressRefused):
        await backend(Names([PUBLIC, "127.0.0.1"]), tcp).connect_tcp("good.example", 443)

    assert tcp.called == []


async def test_the_address_that_was_checked_is_the_one_connected_to() -> None:
    """T-18: a name that answers with a public address first and a private one later is asked once per connection."""
    names, tcp = Names([PUBLIC], ["127.0.0.1"]), Recorder()
    pinned = backend(names, tcp)

    await pinned.connect_tcp("rebind.example", 443)

    assert (names.asked, tcp.called) == (1, [PUBLIC])
    with pytest.raises(EgressRefused):
        await pinned.connect_tcp("rebind.example", 443)
    assert tcp.called == [PUBLIC]


async def test_the_listener_on_the_private_side_sees_nothing() -> None:
    async with trip_wire() as (port, seen):
        pinned = PinnedBackend(Guard(), Names(["127.0.0.1"]), connect_timeout=1.0, tcp=httpcore.AnyIOBackend())
        with pytest.raises(EgressRefused):
            await pinned.connect_tcp("rebind.example", port)

    assert seen == []


async def test_a_dead_address_gives_way_to_the_next_one() -> None:
    tcp = Recorder(dead=["2606:4700:4700::1111"])

    await backend(Names(["2606:4700:4700::1111", PUBLIC, PUBLIC]), tcp).connect_tcp("good.example", 443)

    assert tcp.called == ["2606:4700:4700::1111", PUBLIC]


async def test_a_name_without_addresses_cannot_be_connected_to() -> None:
    with pytest.raises(httpcore.ConnectError):
        await backend(Names([]), Recorder()).connect_tcp("good.example", 443)


async def test_local_sockets_are_refused() -> None:
    with pytest.raises(EgressRefused):
        await backend(Names([PUBLIC]), Recorder()).connect_unix_socket("/var/run/docker.sock")


# --- development -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "url", "header"),
    [
        ("127.0.0.1:9000", "http://127.0.0.1:9000/x", "127.0.0.1:9000"),
        ("LOCALHOST:9000", "https://localhost:9000/x", "localhost:9000"),
        ("[::1]:9000", "http://[::1]:9000/x", "[::1]:9000"),
        ("vault.internal:80", "http://vault.internal/x", "vault.internal"),
    ],
)
def test_an_allowed_entry_may_be_http_private_and_an_address(entry: str, url: str, header: str) -> None:
    guard = Guard(allow=[entry])

    to = guard.admit(url, ["127.0.0.1", "localhost", "::1", "vault.internal"])

    assert to.host_header == header
    assert guard.may_be_private(to.host, to.port)


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:9001/", "http://127.0.0.1/", "https://127.0.0.1/", "http://127.0.0.2:9000/"),
        *("http://user@127.0.0.1:9000/", "http://127.0.0.1:9000/#x", "ftp://127.0.0.1:9000/"),
    ],
)
def test_an_allowed_entry_opens_nothing_beside_itself(url: str) -> None:
    with pytest.raises(EgressRefused):
        Guard(allow=["127.0.0.1:9000"]).admit(url, ["127.0.0.1", "127.0.0.2"])


def test_an_allowed_entry_must_still_be_the_providers_host() -> None:
    with pytest.raises(EgressRefused):
        Guard(allow=["127.0.0.1:9000"]).admit("http://127.0.0.1:9000/", ["github.com"])


@pytest.mark.parametrize("entry", ["127.0.0.1", ":9000", "localhost:http", "localhost:"])
def test_a_malformed_allowed_entry_is_named(entry: str) -> None:
    with pytest.raises(ConfigurationError, match="PENSTOCK_OUTBOUND_ALLOW"):
        Guard(allow=[entry])


STAND_INS = {
    "github.com": "http://127.0.0.1:9001",
    "*.my.salesforce.com": "http://127.0.0.1:9002",
    "*.sandbox.my.salesforce.com": "http://127.0.0.1:9003",
}


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("https://github.com/login?a=b", 9001),
        ("https://acme.my.salesforce.com/login?a=b", 9002),
        ("https://acme--dev.sandbox.my.salesforce.com/login?a=b", 9003),
    ],
)
def test_an_emulator_stands_in_for_a_provider_and_learns_its_name(url: str, port: int) -> None:
    guard = Guard(provider_hosts=STAND_INS)

    to = guard.admit(url, ["github.com", ".my.salesforce.com"])

    assert (to.scheme, to.host, to.port, to.target) == ("http", "127.0.0.1", port, b"/login?a=b")
    assert to.host_header == url.split("/")[2]
    assert guard.may_be_private("127.0.0.1", port)


def test_a_host_without_an_emulator_is_left_alone() -> None:
    assert Guard(provider_hosts=STAND_INS).admit("https://api.github.com/", [".github.com"]).host == "api.github.com"


@pytest.mark.parametrize("url", ["http://github.com/", "https://github.com:9001/", "http://127.0.0.1:9001/"])
def test_an_emulator_relaxes_nothing_about_the_url(url: str) -> None:
    with pytest.raises(EgressRefused):
        Guard(provider_hosts=STAND_INS).admit(url, ["github.com", "127.0.0.1"])


def test_an_emulator_does_not_widen_the_host_rule() -> None:
    with pytest.raises(EgressRefused):
        Guard(provider_hosts=STAND_INS).admit("https://github.com/", ["login.salesforce.com"])


@pytest.mark.parametrize("origin", ["127.0.0.1:9001", "ftp://127.0.0.1", "http://", ""])
def test_a_malformed_emulator_origin_is_named(origin: str) -> None:
    with pytest.raises(ConfigurationError, match="PENSTOCK_PROVIDER_HOSTS"):
        Guard(provider_hosts={"github.com": origin})
