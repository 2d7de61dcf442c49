"""Several exports in one process: each with its own image, size and migration."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from support.images import MIB, assert_same, blank_image, random_image
from support.operator import ask, wait_until
from support.processes import Child, Children, flexmigrate, run
from support.raw_nbd import Ended, ProtocolViolation, RawClient
from support.servers import stop

SIZES = {"alpha": 1 * MIB, "beta": 2 * MIB, "größe 3": 3 * MIB}
SLOWLY = str(256 << 10)  # bytes a second: so a migration of an export lasts for seconds


class Several:
    """A server of three exports, and destinations for them."""

    def __init__(self, folder: Path, children: Children, stack: ExitStack) -> None:
        self.folder = folder
        self.children = children
        self._stack = stack
        self.sock = folder / "sock"
        self.images = {
            name: random_image(folder / f"{number}.img", size, seed=number)
            for number, (name, size) in enumerate(SIZES.items())
        }

    def serve(self, *more: str) -> Child:
        exports = [f"--export={name}={image}" for name, image in self.images.items()]
        words = ("--addr", "127.0.0.1", "--port", "0", "--sock", str(self.sock), *exports, *more)
        server = self.children.flexmigrate("serve", *words)
        server.listening()
        return server

    def listen(self, name: str, *more: str) -> tuple[Child, Path, tuple[str, ...]]:
        """Start a destination for the export *name*; return it, its image, and its address."""
        copy = blank_image(self.folder / f"{self.images[name].stem}.copy", SIZES[name])
        place = ("--addr", "127.0.0.1", "--port", "0", "--file", str(copy))
        destination = self.children.flexmigrate("listen", *place, *more)
        host, port = destination.listening()
        return destination, copy, ("--addr", host, "--port", str(port))

    def mirror(self, place: tuple[str, ...], *more: str) -> CompletedProcess[bytes]:
        return flexmigrate("mirror", *place, "--sock", str(self.sock), *more)

    def give_away(self, name: str) -> None:
        """Migrate the export *name*, and see that all of it has arrived."""
        destination, copy, place = self.listen(name)
        answer = self.mirror(place, "--export", name)
        assert answer.stdout == b"Mirror started\n", answer
        destination.expect_exit(0)
        assert_same(self.images[name], copy)

    def client(self, server: Child, export: str) -> RawClient:
        client = RawClient.to(*server.listening(), export=export)
        self._stack.callback(client.close)
        return client


@pytest.fixture
def several(tmp_path: Path, children: Children) -> Iterator[Several]:
    with ExitStack() as stack:
        yield Several(tmp_path, children, stack)


def uri(server: Child, name: str = "") -> str:
    host, port = server.listening()
    return f"nbd://{host}:{port}/{name}"


def listed(server: Child) -> dict[str, int]:
    """Return the exports that ``nbdinfo --list`` shows, with their sizes."""
    found = run("nbdinfo", "--list", "--json", uri(server))
    assert found.returncode == 0, found
    exports = json.loads(found.stdout)["exports"]
    return {each["export-name"]: each["export-size"] for each in exports}


class TestServing:
    def test_each_is_listed_with_its_own_size(self, several: Several) -> None:
        assert listed(several.serve()) == SIZES

    def test_qemu_lists_them_too(self, several: Several) -> None:
        host, port = several.serve().listening()
        shown = run("qemu-nbd", "--list", f"--bind={host}", f"--port={port}").stdout.decode()
        assert re.findall(r"export: '(.*)'\n\s+size:\s+(\d+)", shown) == [
            (name, str(size)) for name, size in SIZES.items()
        ]

    def test_each_has_its_own_bytes(self, several: Several) -> None:
        server = several.serve()
        for name, image in several.images.items():
            client = several.client(server, name)
            assert client.size == SIZES[name]
            assert client.read(0, client.size) == image.read_bytes()
            assert client.write(4096, name.encode()) == 0
        for name, image in several.images.items():
            assert image.read_bytes()[4096:].startswith(name.encode())

    def test_who_names_none_gets_the_first_or_the_one_that_was_said(self, several: Several) -> None:
        for more, expected in (((), "alpha"), (("--default-export", "beta"), "beta")):
            server = several.serve(*more)
            assert several.client(server, "").size == SIZES[expected]
            shown = json.loads(run("nbdinfo", "--json", uri(server)).stdout)["exports"][0]
            assert shown["export-size"] == SIZES[expected]
            stop(server)

    def test_a_name_that_there_is_not_is_refused_and_the_next_one_can_be_asked_for(
        self, several: Several
    ) -> None:
        server = several.serve()
        with pytest.raises(ProtocolViolation, match="GO was answered"):
            several.client(server, "delta")
        assert run("nbdinfo", "--size", uri(server, "delta")).returncode != 0
        assert run("nbdinfo", "--size", uri(server, "beta")).stdout == b"2097152\n"

    def test_names_that_are_not_told_can_still_be_asked_for(self, several: Several) -> None:
        server = several.serve("--no-list")
        refused = run("nbdinfo", "--list", uri(server))
        assert refused.returncode != 0
        assert b"alpha" not in refused.stdout + refused.stderr
        assert run("nbdinfo", "--size", uri(server, "beta")).stdout == b"2097152\n"

    def test_our_own_commands_name_them_by_uri(self, several: Several) -> None:
        server = several.serve()
        target = uri(server, "gr%C3%B6%C3%9Fe%203")
        written = flexmigrate("write", target, "--from", "512", "--size", "5", stdin=b"hello")
        assert written.returncode == 0, written
        read = flexmigrate("read", target, "--from", "512", "--size", "5")
        assert (read.returncode, read.stdout) == (0, b"hello")
        assert several.images["größe 3"].read_bytes()[512:517] == b"hello"

    def test_one_more_client_than_is_allowed_is_refused_until_one_leaves(
        self, several: Several
    ) -> None:
        server = several.serve("--max-clients", "2")
        first, second = several.client(server, "alpha"), several.client(server, "beta")
        with pytest.raises(Ended):
            several.client(server, "alpha")
        server.wait_for("2 clients are connected already")
        first.say_goodbye()
        assert several.client(server, "beta").size == SIZES["beta"]
        assert second.read(0, 512)

    def test_one_image_twice_is_refused(self, several: Several) -> None:
        several.images["beta"] = several.images["alpha"]
        exports = [f"--export={name}={image}" for name, image in several.images.items()]
        ended = flexmigrate("serve", "--addr", "127.0.0.1", "--port", "0", *exports)
        assert ended.returncode == 1
        assert b"in use" in ended.stderr


class TestMigrating:
    def test_without_a_name_it_is_refused_with_the_names(self, several: Several) -> None:
        server = several.serve()
        _, _, place = several.listen("alpha")
        refused = several.mirror(place)
        assert refused.returncode == 1
        for name in SIZES:
            assert repr(name) in refused.stderr.decode()
        for command in (("break",), ("mirror_max_bps", "1")):
            code, text = ask(several.sock, *command)
            assert code == 1
            assert "'alpha'" in text
        assert server.running

    def test_a_name_that_there_is_not_is_refused_with_the_names(self, several: Several) -> None:
        several.serve()
        _, _, place = several.listen("alpha")
        refused = several.mirror(place, "--export", "delta")
        assert refused.returncode == 1
        assert b"'delta'" in refused.stderr
        assert b"'beta'" in refused.stderr

    def test_the_other_exports_go_on_being_served(self, several: Several) -> None:
        server = several.serve()
        staying, moving = several.client(server, "beta"), several.client(server, "alpha")
        several.give_away("alpha")
        moving.expect_end()
        assert staying.write(0, b"still here") == 0
        assert staying.read(0, 10) == b"still here"
        assert listed(server) == {name: SIZES[name] for name in SIZES if name != "alpha"}
        with pytest.raises(ProtocolViolation, match="GO was answered"):
            several.client(server, "alpha")
        assert several.client(server, "beta").read(0, 10) == b"still here"
        stop(server)

    def test_an_image_that_was_given_away_is_let_go(self, several: Several) -> None:
        """Its file can be used at once, though the process goes on with the other ones."""
        server = several.serve()
        several.client(server, "alpha")
        several.give_away("alpha")
        server.wait_for("export 'alpha': the image was migrated away")
        image = several.images["alpha"]
        assert run("flock", "--exclusive", "--timeout=60", str(image), "true").returncode == 0
        held = {path.readlink() for path in Path(f"/proc/{server.pid}/fd").iterdir()}
        assert image not in held
        assert several.images["beta"] in held
        stop(server)

    def test_an_unlinked_image_gives_its_space_back(self, several: Several) -> None:
        server = several.serve()
        destination, _, place = several.listen("alpha")
        assert several.mirror(place, "--export", "alpha", "--unlink").returncode == 0
        destination.expect_exit(0)
        assert not several.images["alpha"].exists()
        ended = flexmigrate("status", "--sock", str(several.sock), "--export", "alpha")
        assert b"last_migration=complete" in ended.stdout
        stop(server)

    def test_the_process_ends_with_0_when_the_last_one_is_given_away(
        self, several: Several
    ) -> None:
        server = several.serve()
        for name in ("beta", "alpha"):
            several.give_away(name)
            assert server.running, server.story()
        several.give_away("größe 3")
        server.expect_exit(0)

    def test_what_was_given_away_is_not_given_away_again(self, several: Several) -> None:
        several.serve()
        several.give_away("alpha")
        _, _, place = several.listen("beta")
        refused = several.mirror(place, "--export", "alpha")
        assert (refused.returncode, refused.stderr) == (1, b"the image was migrated away\n")

    def test_two_migrations_at_the_same_time(self, several: Several) -> None:
        server = several.serve()
        names = ("alpha", "beta")
        destinations = {}
        for name in names:
            destination, copy, place = several.listen(name)
            answer = several.mirror(place, "--export", name, "--max-bps", SLOWLY)
            assert answer.returncode == 0, answer
            destinations[name] = destination, copy
        for name in names:
            code, text = ask(several.sock, "status", f"export={name}")
            assert (code, "is_mirroring=true" in text) == (0, True)
            assert ask(several.sock, "mirror_max_bps", "0", f"export={name}") == (0, "updated")
        for name, (destination, copy) in destinations.items():
            destination.expect_exit(0)
            assert_same(several.images[name], copy)
        assert several.client(server, "größe 3").read(0, 512)
        stop(server)

    def test_one_is_broken_off_and_the_other_arrives(self, several: Several) -> None:
        server = several.serve()
        broken, _, broken_place = several.listen("beta")
        whole, copy, whole_place = several.listen("alpha")
        for name, place in (("beta", broken_place), ("alpha", whole_place)):
            assert several.mirror(place, "--export", name, "--max-bps", SLOWLY).returncode == 0
        assert ask(several.sock, "break", "export=beta") == (0, "mirror stopped")
        assert ask(several.sock, "break", "export=beta") == (1, "Not mirroring")
        assert ask(several.sock, "mirror_max_bps", "0", "export=alpha") == (0, "updated")
        whole.expect_exit(0)
        assert_same(several.images["alpha"], copy)
        assert several.client(server, "beta").write(0, b"x") == 0
        assert broken.running
        stop(server)

    def test_sigterm_while_one_of_them_migrates(self, several: Several) -> None:
        server = several.serve()
        several.give_away("alpha")
        _, _, place = several.listen("beta")
        assert several.mirror(place, "--export", "beta", "--max-bps", SLOWLY).returncode == 0
        stop(server, status=1)

    def test_sigterm_when_some_were_given_away_and_nothing_is_under_way(
        self, several: Several
    ) -> None:
        server = several.serve()
        several.give_away("alpha")
        stop(server, status=0)

    def test_a_size_that_does_not_match_is_that_of_the_export(self, several: Several) -> None:
        several.serve()
        _, _, place = several.listen("beta")
        refused = several.mirror(place, "--export", "alpha")
        assert refused.stderr.startswith(b"Remote size does not match local size: ")

    def test_the_name_at_the_destination(self, several: Several) -> None:
        """A listen takes its image under its own name, and under none."""
        several.serve()
        destination, copy, place = several.listen("alpha", "--export", "elsewhere")
        refused = several.mirror(place, "--export", "alpha", "--remote-export", "alpha")
        assert refused.returncode == 1
        assert refused.stderr.startswith(b"Mirror was rejected: ")
        assert b"there is no such export" in refused.stderr
        accepted = several.mirror(place, "--export", "alpha", "--remote-export", "elsewhere")
        assert accepted.returncode == 0, accepted
        destination.expect_exit(0)
        assert_same(several.images["alpha"], copy)

    def test_after_a_rebind_it_is_found_under_its_name(self, several: Several) -> None:
        server = several.serve()
        path = str(several.folder / "nbd")
        sock = several.folder / "listen.sock"
        destination, _, place = several.listen(
            "alpha", "--export", "alpha", "--rebind-addr", path, "--sock", str(sock)
        )
        assert several.mirror(place, "--export", "alpha").returncode == 0
        found = wait_until(sock, listening_phase="serving")
        assert (found["export"], found["num_exports"]) == ("alpha", "1")
        for name in ("alpha", ""):
            client = RawClient.to(path, 0, export=name)
            assert client.read(0, 512) == several.images["alpha"].read_bytes()[:512]
            client.say_goodbye()
        stop(destination)
        stop(server)


class TestStatus:
    def test_each_export_has_its_own(self, several: Several) -> None:
        several.serve("--default-export", "beta")
        for name, size in SIZES.items():
            code, text = ask(several.sock, "status", f"export={name}")
            told = dict(pair.split("=", 1) for pair in text.split(" "))
            assert (code, told["size"], told["num_exports"]) == (0, str(size), "3")
        code, text = ask(several.sock, "status")
        assert "export=beta" in text.split()

    def test_one_that_there_is_not(self, several: Several) -> None:
        several.serve()
        code, text = ask(several.sock, "status", "export=delta")
        assert code == 1
        assert "there is no export 'delta'" in text

    def test_one_that_was_given_away(self, several: Several) -> None:
        several.serve()
        several.give_away("alpha")
        found = flexmigrate("status", "--sock", str(several.sock), "--export", "alpha").stdout
        assert b"has_control=false" in found
        assert b"last_migration=complete" in found
        assert (
            b"has_control=true"
            in flexmigrate("status", "--sock", str(several.sock), "--export", "beta").stdout
        )

    def test_a_destination_knows_its_own_name_only(self, several: Several) -> None:
        sock = several.folder / "listen.sock"
        several.listen("alpha", "--export", "alpha", "--sock", str(sock))
        assert ask(sock, "status", "export=alpha")[0] == 0
        code, text = ask(sock, "status", "export=beta")
        assert (code, "'beta'" in text) == (1, True)
