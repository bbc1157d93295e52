"""TLS: only a certificate for the very name passes, and a refused handshake counts as not sent."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from broker.oauth.http import HttpRequest, HttpResponse
from broker.outbound import Outbound, SendFailed, SendState

HOST = "provider.example"
NOW = datetime.now(UTC)


class Authority:
    """A certificate authority for one test run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])
        root = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        self.root = root.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()

    def server(self, host: str = HOST, *, age: timedelta = timedelta(0), self_signed: bool = False) -> ssl.SSLContext:
        """Return a server's context whose certificate is for *host* and became valid *age* ago, for a day."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        builder = self._builder(subject, key, issuer=subject if self_signed else None, since=NOW - age)
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        certificate = builder.add_extension(names, False).sign(key if self_signed else self._key, hashes.SHA256())
        path = self._directory / f"{certificate.serial_number}.pem"
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(private + certificate.public_bytes(Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.root)

    def _builder(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        issuer: x509.Name | None = None,
        since: datetime = NOW,
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(since - timedelta(minutes=5))
            .not_valid_after(since + timedelta(days=1))
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


class Tls:
    """A TLS server that notes each name it was asked for, and each request that reached it."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.context = context
        self.names: list[str | None] = []
        self.requests: list[bytes] = []
        if context is not None:
            context.sni_callback = lambda _socket, name, _context: self.names.append(name)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        listener = await asyncio.start_server(self, "127.0.0.1", 0, ssl=self.context)
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            listener.close()


async def loopback(_host: str, _port: int) -> Sequence[str]:
    return ["127.0.0.1"]


async def call(server: Tls, trusted: ssl.SSLContext | None, *, host: str = HOST) -> HttpResponse:
    async with server.serving() as port:
        outbound = Outbound(
            allow=[f"{host}:{port}"], resolve=loopback, ssl_context=trusted, connect_timeout=timedelta(seconds=0.5)
        )
        try:
            request = HttpRequest(method="POST", url=f"https://{host}:{port}/token", body=b"refresh_token=r")
            return await outbound.send(request, hosts=[host], deadline=timedelta(seconds=2))
        finally:
            await outbound.aclose()


async def refused(server: Tls, trusted: ssl.SSLContext | None) -> SendFailed:
    with pytest.raises(SendFailed) as caught:
        await call(server, trusted)
    return caught.value


async def test_a_good_certificate_passes_and_the_name_is_asked_for(authority: Authority) -> None:
    server = Tls(authority.server())

    assert (await call(server, authority.client())).body == b"ok"
    assert server.names == [HOST]


@pytest.mark.parametrize(
    "wrong", [{"host": "evil.example"}, {"age": timedelta(days=3)}, {"self_signed": True}], ids=str
)
async def test_a_wrong_certificate_is_refused_before_the_request(
    authority: Authority, wrong: dict[str, object]
) -> None:
    """T-31: another host's, an expired one, a self-signed one."""
    server = Tls(authority.server(**wrong))  # type: ignore[arg-type]

    failure = await refused(server, authority.client())

    assert (failure.state, failure.reason, server.requests) == (SendState.NOT_SENT, "certificate", [])


async def test_an_authority_that_the_system_does_not_know_is_refused(authority: Authority) -> None:
    server = Tls(authority.server())

    failure = await refused(server, None)

    assert (failure.state, failure.reason, server.requests) == (SendState.NOT_SENT, "certificate", [])


async def test_each_connection_is_verified_for_its_own_name(authority: Authority) -> None:
    """A server that shares its address with another is not trusted for the other's name."""
    server = Tls(authority.server())
    trusted = authority.client()
    await call(server, trusted)

    with pytest.raises(SendFailed) as caught:
        await call(server, trusted, host="other.example")

    assert (caught.value.reason, server.names, len(server.requests)) == ("certificate", [HOST, "other.example"], 1)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1 is deprecated")
async def test_an_old_version_of_tls_is_refused(authority: Authority) -> None:
    context = authority.server()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1
    server = Tls(context)
    async with server.serving() as port:  # the server does speak it
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version = ssl.TLSVersion.TLSv1
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=old)
        assert writer.get_extra_info("ssl_object").version() == "TLSv1"
        writer.close()

    failure = await refused(server, None)

    assert (failure.state, failure.reason, server.requests) == (SendState.NOT_SENT, "tls", [])


async def test_a_server_that_does_not_speak_tls_is_not_sent_to() -> None:
    class Plain(Tls):
        async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

    failure = await refused(Plain(None), None)

    assert (failure.state, failure.reason) == (SendState.NOT_SENT, "tls")


async def test_a_handshake_that_stalls_is_not_sent() -> None:
    failure = await refused(Tls(None), None)  # it waits for a request that never comes in the clear

    assert (failure.state, failure.reason) == (SendState.NOT_SENT, "tls")
    assert timedelta(seconds=0.5) <= failure.elapsed < timedelta(seconds=2)


@pytest.mark.parametrize(
    ("version", "state", "reason"),
    [
        (ssl.TLSVersion.TLSv1_2, SendState.NOT_SENT, "tls"),
        (ssl.TLSVersion.TLSv1_3, SendState.IN_DOUBT, "reset"),  # the refusal arrives after the request was written
    ],
)
async def test_a_demand_for_a_client_certificate(
    authority: Authority, version: ssl.TLSVersion, state: SendState, reason: str
) -> None:
    context = authority.server()
    context.minimum_version = context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED
    server = Tls(context)

    failure = await refused(server, authority.client())

    assert (failure.state, failure.reason, server.requests) == (state, reason, [])
