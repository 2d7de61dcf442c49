"""Certificates made on the fly, in the folders that flexmigrate, QEMU, nbdkit and libnbd share.

Everything is made with the cryptography library, so that it doesn't depend on the code under test.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOSTS = ("localhost", "127.0.0.1", "::1")

_PURPOSES = {
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
}


class Pair:
    """A certificate and its key.

    :ivar certificate: as PEM.
    :ivar key: as PEM, not encrypted.
    """

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate.public_bytes(serialization.Encoding.PEM)
        self.key = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def write(self, folder: Path, role: str) -> None:
        """Put both into *folder* as those of *role*, "server" or "client"."""
        (folder / f"{role}-cert.pem").write_bytes(self.certificate)
        (folder / f"{role}-key.pem").write_bytes(self.key)


class Authority:
    """A certificate authority.

    :ivar certificate: its own one, as PEM.
    """

    def __init__(self, name: str = "an authority", above: Authority | None = None) -> None:
        """Make it, signed by itself or by the authority *above*."""
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        signer = above or self
        own = _builder(self._name, signer._name, self._key, valid=True)
        own = own.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        own = own.add_extension(_usage(signs_others=True), critical=True)
        self.certificate = own.sign(signer._key, hashes.SHA256()).public_bytes(
            serialization.Encoding.PEM
        )

    def issue(
        self,
        role: str,
        hosts: Iterable[str] = HOSTS,
        *,
        valid: bool = True,
        self_signed: bool = False,
    ) -> Pair:
        """Return a certificate for *role*, "server" or "client", and its key.

        :param hosts: names and addresses that it is for.
        :param valid: now; or else it has expired.
        :param self_signed: by its own key, instead of by this authority.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = _named(f"a {role}")
        builder = _builder(name, name if self_signed else self._name, key, valid)
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False
        )
        builder = builder.add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True
        )
        builder = builder.add_extension(_usage(signs_others=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([_PURPOSES[role]]), critical=False)
        return Pair(builder.sign(key if self_signed else self._key, hashes.SHA256()), key)

    def folder(self, path: Path, *roles: str) -> Path:
        """Make the folder *path* with this authority and certificates for *roles*; return it."""
        path.mkdir()
        (path / "ca-cert.pem").write_bytes(self.certificate)
        for role in roles:
            self.issue(role).write(path, role)
        return path


class PKI:
    """The folders of a world with two authorities.

    :ivar ours: our authority, and certificates for a server and a client.
    :ivar anonymous: our authority only: for a client that has no certificate.
    :ivar theirs: the same as `ours` of the other authority.
    """

    def __init__(self, path: Path) -> None:
        self.authority = Authority()
        self.ours = self.authority.folder(path / "ours", "server", "client")
        self.anonymous = self.authority.folder(path / "anonymous")
        self.theirs = Authority("another authority").folder(path / "theirs", "server", "client")


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, valid: bool
) -> x509.CertificateBuilder:
    now = datetime.now(timezone.utc)
    end = now + timedelta(days=1) if valid else now - timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(end)
    )


def _usage(*, signs_others: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_others,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not signs_others,
        key_cert_sign=signs_others,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
