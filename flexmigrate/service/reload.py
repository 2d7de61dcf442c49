"""Reloading of the certificates and the access list while a server runs, upon SIGHUP.

Certificates come from their folder, the access list from the configuration file, if there is one.
Either everything is reloaded or nothing. Connections over TLS stay as they are; clients that the
access list doesn't admit any more are disconnected. Other changes of the file take effect at the
next start, and are logged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields

from twisted.logger import Logger

from flexmigrate.config import ListenConfig, ServeConfig
from flexmigrate.errors import FlexmigrateError
from flexmigrate.net.acl import AccessList
from flexmigrate.net.tls import ServerCertificates
from flexmigrate.service.lifetime import Reload
from flexmigrate.settings import SERVER_SETTINGS

log = Logger()

_TAKEN_OVER = {"acl", "default_deny"}
_KEYS = {
    **{each.field: each.name for each in SERVER_SETTINGS},
    "places": "addr, port or endpoint",
    "exports": "file or export",
    "rebind": "rebind-addr or rebind-port",
    "log": "log-format, log-level or log-requests",
}
"""Keys in the file, by the fields that they set; those of the others are the fields' names."""


class Reloading:
    """The reloading; see the module.

    :param config: the configuration with which the server was started.
    :param certificates: the server's certificates, or None without TLS.
    :param use_acl: called with the new access list.
    :ivar default_deny: whether an empty access list admits nobody.
    """

    def __init__(
        self,
        config: ServeConfig | ListenConfig,
        certificates: ServerCertificates | None,
        use_acl: Callable[[AccessList], None],
    ) -> None:
        self._config = config
        self._certificates = certificates
        self._use_acl = use_acl
        self.default_deny = config.default_deny

    @property
    def when_told(self) -> Reload | None:
        """The function that reloads; None if there is nothing to reload."""
        if self._certificates is None and self._config.reread is None:
            return None
        return self.reload

    def reload(self) -> None:
        """Reload, or log the error and change nothing."""
        reread = self._config.reread
        certificates = self._certificates
        context = None
        try:
            new = self._config if reread is None else reread()
            acl = AccessList(new.acl, new.default_deny)
            if certificates is not None and new.tls.certificates is not None:
                context = certificates.read(new.tls.certificates)
        except FlexmigrateError as error:
            log.error("not reloaded, nothing was changed: {error}", error=error)
            return
        taken_over = []
        if certificates is not None and context is not None:
            certificates.use(context)
            taken_over.append("certificates")
        if reread is not None:
            self.default_deny = new.default_deny
            self._use_acl(acl)
            taken_over.append("access list")
        log.info("reloaded: {what}", what=", ".join(taken_over))
        if others := ", ".join(self._others(new)):
            log.warn("other changes of the configuration need a restart: {others}", others=others)

    def _others(self, new: ServeConfig | ListenConfig) -> Iterator[str]:
        """Yield the keys of changed settings that need a restart."""
        for each in fields(self._config):
            before, now = getattr(self._config, each.name), getattr(new, each.name)
            if each.name == "tls":
                before = (before.rule, before.verify_peer, before.certificates is None)
                now = (now.rule, now.verify_peer, now.certificates is None)
            if each.compare and each.name not in _TAKEN_OVER and before != now:
                yield _KEYS.get(each.name, each.name)
