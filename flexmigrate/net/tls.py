"""Certificates and keys for TLS.

They are read from a folder in the layout that QEMU, nbdkit and libnbd share:

* ``ca-cert.pem``: the trusted authorities;
* ``server-cert.pem``, ``server-key.pem``: the server's certificate and key;
* ``client-cert.pem``, ``client-key.pem``: the client's, if it has them.

TLS itself is Twisted's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from OpenSSL.crypto import Error as OpenSSLError
from OpenSSL.SSL import Error as SSLError
from service_identity import VerificationError
from twisted.internet.error import VerifyError
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    PrivateCertificate,
    TLSVersion,
    optionsForClientTLS,
    trustRootFromCertificates,
)

from flexmigrate.errors import UsageError

_BEGIN = b"-----BEGIN CERTIFICATE-----"


def server_context(folder: str, *, verify_peer: bool) -> Any:
    """Return the context for ``startTLS`` at a server.

    :param verify_peer: accept only clients with a certificate that our authorities signed.
    :raises UsageError: a file is missing or invalid; the message names it.
    """
    own, *chain = _certificates(folder, "server-cert.pem")
    key = _private(folder, "server").privateKey
    trust = _certificates(folder, "ca-cert.pem") if verify_peer else []
    return CertificateOptions(
        privateKey=key.original,
        certificate=own.original,
        extraCertChain=[each.original for each in chain],
        trustRoot=trustRootFromCertificates(trust) if verify_peer else None,
        raiseMinimumTo=TLSVersion.TLSv1_2,
    )


class ServerCertificates:
    """A context factory for ``startTLS`` at a server whose certificates can be read again. Open
    connections keep the old ones, later connections get the new ones.

    :raises UsageError: see `server_context`.
    """

    def __init__(self, folder: str, *, verify_peer: bool) -> None:
        self._verify_peer = verify_peer
        self._context = self.read(folder)

    def read(self, folder: str) -> Any:
        """Return a context made from *folder*, for `use`.

        :raises UsageError: see `server_context`.
        """
        return server_context(folder, verify_peer=self._verify_peer)

    def use(self, context: Any) -> None:
        """Use a context from `read` for new connections."""
        self._context = context

    def getContext(self) -> Any:  # noqa: N802  # as IOpenSSLContextFactory has it
        """Return the context for the next connection."""
        return self._context.getContext()


def client_context(folder: str, hostname: str) -> Any:
    """Return the context for ``startTLS`` at a client, which verifies the server.

    :param hostname: the name, or IP address, that the server's certificate must have.
    :raises UsageError: a file is missing or invalid; the message names it.
    """
    shown = None
    if (Path(folder) / "client-cert.pem").exists():
        shown = _private(folder, "client")
    return optionsForClientTLS(
        hostname.partition("%")[0],  # a certificate doesn't contain a link
        trustRoot=trustRootFromCertificates(_certificates(folder, "ca-cert.pem")),
        clientCertificate=shown,
    )


def fault(error: BaseException | None) -> str:
    """Return the reason of a TLS failure for an operator, instead of OpenSSL's list of codes."""
    if isinstance(error, VerificationError):
        return "the server's certificate is for another name"
    if isinstance(error, SSLError) and error.args and error.args[0]:
        return ", ".join(reason for *_, reason in error.args[0] if reason)
    return "the other side ended it without giving a reason"


def _private(folder: str, role: str) -> PrivateCertificate:
    pem = _read(folder, f"{role}-key.pem") + "\n" + _read(folder, f"{role}-cert.pem")
    try:
        certificate: PrivateCertificate = PrivateCertificate.loadPEM(pem)
    except (OpenSSLError, ValueError, VerifyError) as error:
        raise UsageError(
            f"{folder}: {role}-key.pem and {role}-cert.pem do not belong together"
        ) from error
    return certificate


def _certificates(folder: str, name: str) -> list[Certificate]:
    pieces = _read(folder, name).encode().split(_BEGIN)[1:]
    try:
        found = [Certificate.loadPEM(_BEGIN + piece) for piece in pieces]
    except (OpenSSLError, ValueError) as error:
        raise UsageError(f"{folder}/{name} contains something that is not a certificate") from error
    if not found:
        raise UsageError(f"{folder}/{name} contains no certificate")
    return found


def _read(folder: str, name: str) -> str:
    try:
        return (Path(folder) / name).read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise UsageError(f"{folder}/{name}: {error.strerror}") from error
