from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.client.uri import NBDURI, URIError, parse_uri
from flexmigrate.errors import UsageError
from flexmigrate.wire.agreement import TLSMode
from flexmigrate.wire.client_handshake import ClientOptions

GOOD = {
    # doc/uri.md, "NBD URI export name"
    "nbd://example.com/disk": NBDURI("example.com", 10809, export="disk"),
    "nbd+unix:///disk?socket=sock": NBDURI(socket="sock", export="disk"),
    "nbd://example.com/": NBDURI("example.com", 10809),
    "nbd://example.com": NBDURI("example.com", 10809),
    "nbd://example.com//disk": NBDURI("example.com", 10809, export="/disk"),
    "nbd://example.com/hello%20world": NBDURI("example.com", 10809, export="hello world"),
    # the rest of it, and RFC 3986
    "nbd://example.com:10810/": NBDURI("example.com", 10810),
    "NBD://127.0.0.1": NBDURI("127.0.0.1", 10809),
    "nbd://[2001:db8::1]:4/x": NBDURI("2001:db8::1", 4, export="x"),
    # RFC 6874, and as people type it
    "nbd://[fe80::1%25eth0]:4/x": NBDURI("fe80::1%eth0", 4, export="x"),
    "nbd://[fe80::1%25ea0]": NBDURI("fe80::1%ea0", 10809),
    "nbd://[fe80::1%eth0]/": NBDURI("fe80::1%eth0", 10809),
    "nbds://me@[fe80::1%ea0.7]:1/": NBDURI("fe80::1%ea0.7", 1, tls=True, username="me"),
    "nbd:///x": NBDURI("localhost", 10809, export="x"),
    "nbd://": NBDURI("localhost", 10809),
    "nbd://h/a%2Fb%3Fc%23%C3%BC": NBDURI("h", 10809, export="a/b?c#ü"),
    "nbds://me%40here@h/": NBDURI("h", 10809, tls=True, username="me@here"),
    "nbd+unix://?socket=/run/nbd.sock": NBDURI(socket="/run/nbd.sock"),
    "nbd+unix:///?socket=%00/abstract": NBDURI(socket="\0/abstract"),
    "nbd+unix:///?socket=/a+b%26c": NBDURI(socket="/a+b&c"),
    "nbds+unix:///x?socket=s&tls-type=x509&tls-hostname=h.example&tls-verify-peer=0": NBDURI(
        socket="s",
        export="x",
        tls=True,
        tls_type="x509",
        tls_hostname="h.example",
        tls_verify_peer=False,
    ),
    "nbds://h/?tls-type=psk&tls-verify-peer=1": NBDURI("h", 10809, tls=True, tls_type="psk"),
}

BAD = {
    "": "scheme",
    "example.com": "scheme",
    "http://example.com/": "scheme",
    "nbd+ssh://h/": "scheme",
    "nbd://h/x#y": "fragment",
    "nbd://h/a b": "percent-encoded",
    "nbd://h/a\nb": "percent-encoded",
    "nbd://h/ü": "percent-encoded",
    "nbd://h:port/": "",
    "nbd://h:65536/": "",
    "nbd://h:0/": "port 0",
    "nbd://:10809/": "without a host",
    "nbd://[::1/": "",
    "nbd://fe80::1/": "in brackets",
    "nbd://[::1]x:3/": "behind the brackets",
    "nbd://[v1.x]/": "in brackets",
    "nbd://[fe80::1%25]/": "",
    "nbd://[fe80::1%25a:b]/": "",
    "nbd://[fe80::1%25sixteen-letters-]/": "not the name of a link",
    "nbd://h/%00": "NUL",
    "nbd://h/%FF": "",
    "nbd://h/" + "x" * 4097: "4096",
    "nbd://h/?socket=s": "nbd+unix",
    "nbd+unix:///": "which socket",
    "nbd+unix:///?socket=": "which socket",
    "nbd+unix:///?socket=a%00b": "NUL",
    "nbd+unix://h/?socket=s": "no host",
    "nbd+unix:///?socket=s&socket=t": "twice",
    "nbd://h/?colour=red": "colour",
    "nbds://h/?tls-type=none": "tls-type",
    "nbds://h/?tls-verify-peer=yes": "tls-verify-peer",
    "nbd://h/?" + "&".join(f"a{n}=1" for n in range(17)): "",
}


class URIs(SynchronousTestCase):
    def test_are_read_as_the_specification_has_them(self) -> None:
        for text, meant in GOOD.items():
            self.assertEqual(parse_uri(text), meant, text)

    def test_that_could_mean_another_disk_are_refused_with_the_reason(self) -> None:
        for text, reason in BAD.items():
            with self.assertRaises(URIError, msg=text) as caught:
                parse_uri(text)
            self.assertIn(repr(text), str(caught.exception))
            self.assertIn(reason, str(caught.exception))

    def test_errors_are_errors_of_usage(self) -> None:
        self.assertTrue(issubclass(URIError, UsageError))


class Wishes(SynchronousTestCase):
    def test_are_for_the_named_export_and_keep_the_rest(self) -> None:
        wish = parse_uri("nbd://h/disk").client_options(
            ClientOptions(contexts=("base:allocation",)), with_tls=False
        )
        self.assertEqual(wish, ClientOptions("disk", contexts=("base:allocation",)))

    def test_use_tls_where_it_can_be_had(self) -> None:
        wish = parse_uri("nbd://h/").client_options(ClientOptions(), with_tls=True)
        self.assertIs(wish.tls, TLSMode.ON)

    def test_require_tls_where_the_scheme_does(self) -> None:
        uri = parse_uri("nbds://h/")
        self.assertIs(uri.client_options(ClientOptions(), with_tls=True).tls, TLSMode.REQUIRE)
        self.assertRaises(URIError, uri.client_options, ClientOptions(), with_tls=False)
