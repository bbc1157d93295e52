"""Certificates a client must refuse, and one it must accept: `HostileServer(tls=Authority().context("expired"))`."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import tempfile
import warnings
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Flaw = Literal[
    "none", "expired", "wrong_host", "self_signed", "tls_1_0", "client_certificate_1_2", "client_certificate"
]
_DAY = datetime.timedelta(days=1)


class Authority:
    """A certificate authority for 127.0.0.1 and localhost; `certificate` is its own, PEM, for the client to trust."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Hostile test authority")])
        now = datetime.datetime.now(datetime.UTC)
        root = self._builder(self._name, self._key.public_key(), now - _DAY, now + _DAY).issuer_name(self._name)
        root = root.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = root.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def context(self, flaw: Flaw = "none") -> ssl.SSLContext:
        """Return a server's TLS context with one flaw."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as directory:
            chain = Path(directory, "chain.pem")
            chain.write_bytes(self._leaf(flaw))
            context.load_cert_chain(chain)
        if flaw == "tls_1_0":
            context.set_ciphers("ALL:@SECLEVEL=0")  # OpenSSL's default level has no TLS 1.0
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1
        if flaw in ("client_certificate", "client_certificate_1_2"):
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=self.certificate.decode())
        if flaw == "client_certificate_1_2":
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context

    def _leaf(self, flaw: Flaw) -> bytes:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        ends = now - _DAY if flaw == "expired" else now + _DAY
        hosts = ["elsewhere.example"] if flaw == "wrong_host" else ["localhost"]
        names: list[x509.GeneralName] = [x509.DNSName(host) for host in hosts]
        if flaw != "wrong_host":
            names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
        builder = self._builder(subject, key.public_key(), now - 2 * _DAY, ends)
        builder = builder.issuer_name(subject if flaw == "self_signed" else self._name)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        leaf = builder.sign(key if flaw == "self_signed" else self._key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return private + leaf.public_bytes(serialization.Encoding.PEM)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, begins: datetime.datetime, ends: datetime.datetime
    ) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(subject).public_key(key)
        return builder.serial_number(x509.random_serial_number()).not_valid_before(begins).not_valid_after(ends)
