"""Read the certificates and the access list again while a server runs: when SIGHUP comes.

Certificates come from their folder, the access list from the configuration file, if there is one.
Either all is taken over or nothing. Connections over TLS stay as they are; clients that the access
list doesn't allow any more are closed. Whatever else has changed in the file waits for the next
start, and the log says what that is.
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
    """See the module.

    :param config: of the server, as it was started.
    :param certificates: its own, or None without TLS.
    :param use_acl: called with the access list that counts from now on.
    :ivar default_deny: whether an empty access list lets nobody in.
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
        """Reloads; None where there is nothing that could be."""
        if self._certificates is None and self._config.reread is None:
            return None
        return self.reload

    def reload(self) -> None:
        """Take over what is new, or log what is wrong with it and leave all as it was."""
        reread = self._config.reread
        certificates = self._certificates
        context = None
        try:
            new = self._config if reread is None else reread()
            acl = AccessList(new.acl, new.default_deny)
            if certificates is not None and new.tls.certificates is not None:
                context = certificates.read(new.tls.certificates)
        except FlexmigrateError as error:
            log.error("not reloaded, all stays as it was: {error}", error=error)
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
        """Yield the keys of the settings that have changed and are not taken over."""
        for each in fields(self._config):
            before, now = getattr(self._config, each.name), getattr(new, each.name)
            if each.name == "tls":
                before = (before.rule, before.verify_peer, before.certificates is None)
                now = (now.rule, now.verify_peer, now.certificates is None)
            if each.compare and each.name not in _TAKEN_OVER and before != now:
                yield _KEYS.get(each.name, each.name)
