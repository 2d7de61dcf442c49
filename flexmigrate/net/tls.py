"""Certificates and keys for TLS.

They stand in a folder, in the layout that QEMU, nbdkit and libnbd share:

* ``ca-cert.pem``: the authorities that are trusted;
* ``server-cert.pem``, ``server-key.pem``: what a server shows;
* ``client-cert.pem``, ``client-key.pem``: what a client shows, if it has them.

Twisted does TLS itself; here is only what it is made with.
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
    """Return what ``startTLS`` takes at a server.

    :param verify_peer: only clients with a certificate that our authorities signed get through.
    :raises UsageError: a file is missing or is not what it should be; the text names it.
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
    """What ``startTLS`` takes at a server, which can be read again while connections use it: they
    stay as they are, later ones get what is new.

    :raises UsageError: see `server_context`.
    """

    def __init__(self, folder: str, *, verify_peer: bool) -> None:
        self._verify_peer = verify_peer
        self._context = self.read(folder)

    def read(self, folder: str) -> Any:
        """Return what stands in *folder*, to be used.

        :raises UsageError: see `server_context`.
        """
        return server_context(folder, verify_peer=self._verify_peer)

    def use(self, context: Any) -> None:
        """Use what `read` has returned, from the next connection on."""
        self._context = context

    def getContext(self) -> Any:  # noqa: N802  # as IOpenSSLContextFactory has it
        """Return what the next connection is made with."""
        return self._context.getContext()


def client_context(folder: str, hostname: str) -> Any:
    """Return what ``startTLS`` takes at a client, which verifies the server.

    :param hostname: the name, or IP address, that the server's certificate must have.
    :raises UsageError: a file is missing or is not what it should be; the text names it.
    """
    shown = None
    if (Path(folder) / "client-cert.pem").exists():
        shown = _private(folder, "client")
    return optionsForClientTLS(
        hostname.partition("%")[0],  # a certificate knows nothing of links
        trustRoot=trustRootFromCertificates(_certificates(folder, "ca-cert.pem")),
        clientCertificate=shown,
    )


def fault(error: BaseException | None) -> str:
    """Return why TLS could not be agreed on, for an operator: OpenSSL speaks in lists of codes."""
    if isinstance(error, VerificationError):
        return "the server's certificate is for another name"
    if isinstance(error, SSLError) and error.args and error.args[0]:
        return ", ".join(reason for *_, reason in error.args[0] if reason)
    return "the other side ended it without a reason"


def _private(folder: str, role: str) -> PrivateCertificate:
    pem = _read(folder, f"{role}-key.pem") + "\n" + _read(folder, f"{role}-cert.pem")
    try:
        certificate: PrivateCertificate = PrivateCertificate.loadPEM(pem)
    except (OpenSSLError, ValueError, VerifyError) as error:
        raise UsageError(
            f"{folder}: {role}-key.pem and {role}-cert.pem are not a key and its certificate"
        ) from error
    return certificate


def _certificates(folder: str, name: str) -> list[Certificate]:
    pieces = _read(folder, name).encode().split(_BEGIN)[1:]
    try:
        found = [Certificate.loadPEM(_BEGIN + piece) for piece in pieces]
    except (OpenSSLError, ValueError) as error:
        raise UsageError(f"{folder}/{name} holds something that is no certificate") from error
    if not found:
        raise UsageError(f"{folder}/{name} holds no certificate")
    return found


def _read(folder: str, name: str) -> str:
    try:
        return (Path(folder) / name).read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise UsageError(f"{folder}/{name}: {error.strerror}") from error
