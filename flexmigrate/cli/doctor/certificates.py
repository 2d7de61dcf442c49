"""Checks of a server's certificates and keys."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509

from flexmigrate.cli.doctor.findings import Finding, ok, problem, warning
from flexmigrate.errors import UsageError
from flexmigrate.migration.request import TLSConfig
from flexmigrate.net.tls import client_context, server_context

SOON = timedelta(days=30)
"""Time before a certificate expires in which the doctor warns."""


def look(tls: TLSConfig, now: datetime | None = None) -> Iterator[Finding]:
    """Check the files that a server with *tls* needs, for serving and for migrations.

    :param now: a time with its zone; None for the current time.
    """
    if tls.rule == "off" or tls.certificates is None:
        return
    folder = Path(tls.certificates)
    now = now or datetime.now(timezone.utc)
    yield _usable(folder, tls)
    for name in ("ca-cert.pem", "server-cert.pem", "client-cert.pem"):
        if (folder / name).exists():
            yield from _dates(folder / name, now)
    for name in ("server-key.pem", "client-key.pem"):
        if (folder / name).exists():
            yield _secret(folder / name)
    if not (folder / "ca-cert.pem").exists():
        yield warning(
            str(folder),
            "no ca-cert.pem: clients with certificates, and destinations, can't be verified",
            "put the authority's certificate there, if images are to be migrated with these",
        )


def _usable(folder: Path, tls: TLSConfig) -> Finding:
    try:
        server_context(str(folder), verify_peer=tls.verify_peer)
        if (folder / "ca-cert.pem").exists():
            client_context(str(folder), "localhost")
    except UsageError as error:
        text = str(error).removeprefix(f"{folder}: ")
        return problem(str(folder), text, "see 'Certificates' in the manual for what is needed")
    return ok(str(folder), "certificates and keys belong together")


def _dates(path: Path, now: datetime) -> Iterator[Finding]:
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        return  # `_usable` has reported it
    for certificate in found:
        about = f"{path} ({certificate.subject.rfc4514_string() or 'without a subject'})"
        begin = certificate.not_valid_before_utc
        end = certificate.not_valid_after_utc
        if now < begin:
            yield problem(
                about, f"not valid before {begin:%Y-%m-%d %H:%M} UTC", "is the clock right?"
            )
        elif now >= end:
            yield problem(about, f"expired on {end:%Y-%m-%d}", "have a new one issued")
        elif end - now < SOON:
            yield warning(
                about,
                f"expires on {end:%Y-%m-%d}, in {(end - now).days} days",
                "have a new one issued; servers read it when they start, and after a SIGHUP",
            )
        else:
            yield ok(about, f"valid until {end:%Y-%m-%d}")


def _secret(path: Path) -> Finding:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return problem(str(path), error.strerror or "can't be read", "look at its folder's mode")
    if not os.access(path, os.R_OK):
        return problem(str(path), "can't be read", "let the user that runs the server read it")
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        return warning(str(path), f"mode {mode & 0o777:o}: others can read it", f"chmod 600 {path}")
    return ok(str(path), "readable by its owner only")
