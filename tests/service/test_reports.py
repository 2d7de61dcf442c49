"""``mirror --report`` beside real servers: a report of each end, and no harm by any."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from support.operator import ask
from support.privileges import BOUND_BY_PERMISSIONS
from support.processes import flexmigrate, script
from support.servers import SIZE, SLOWLY, Servers, stop


def mirror(servers: Servers, report: Path, *more: str) -> Any:
    return servers.mirror("--wait", "--report", str(report), *more)


class TestWritten:
    @pytest.mark.parametrize("more", [(), ("--unlink",)])
    def test_when_it_succeeds(self, servers: Servers, more: tuple[str, ...], twistd: bool) -> None:
        source, destination = servers.serve(twistd=twistd), servers.listen(twistd=twistd)
        report = servers.folder / "report.json"
        assert mirror(servers, report, *more).returncode == 0
        # It was there before the verdict.
        told = json.loads(report.read_text())
        assert told["summary"]["verdict"] == "complete"
        assert told["summary"]["bytes_sent"] == SIZE
        assert told["subject"]["image"] == str(servers.image)
        assert told["subject"]["size"] == SIZE
        phases = [change["phase"] for change in told["changes"]]
        assert phases[0] == "dialling"
        assert phases[-1] == "given"
        assert "parked" in phases
        source.expect_exit(0)
        destination.expect_exit(0)
        assert servers.image.exists() == (not more)

    def test_as_a_page(self, servers: Servers) -> None:
        servers.serve()
        servers.listen()
        report = servers.folder / "report.html"
        report.write_text("an older one")
        assert mirror(servers, report).returncode == 0
        page = report.read_text()
        assert page.startswith("<!DOCTYPE html>")
        assert page.endswith("</html>\n")
        assert "complete: 4.00 MiB" in page

    def test_when_nobody_waits_for_it_and_the_process_ends(self, servers: Servers) -> None:
        source = servers.serve()
        servers.listen()
        report = servers.folder / "report.json"
        servers.start_mirroring_slowly("--report", str(report))
        assert not report.exists()
        stop(source, status=1)
        assert json.loads(report.read_text())["summary"]["reason"].startswith("SIGTERM")

    def test_where_the_caller_is_not_where_the_server_is(self, servers: Servers) -> None:
        servers.serve()
        servers.listen()
        assert mirror(servers, Path(os.path.relpath(servers.folder / "r.json"))).returncode == 0
        assert (servers.folder / "r.json").exists()


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("nowhere/report.json", "there is no folder"),
            ("folder.html", "is not a regular file"),
            ("link.html", "is not a regular file"),
        ],
    )
    def test_before_anything_is_begun(self, servers: Servers, name: str, why: str) -> None:
        servers.serve()
        servers.listen()
        (servers.folder / "folder.html").mkdir()
        (servers.folder / "link.html").symlink_to(servers.image)
        refused = mirror(servers, servers.folder / name)
        assert refused.returncode == 1
        assert why in refused.stderr.decode()
        assert servers.copy.read_bytes() == bytes(SIZE)

    def test_an_image_is_no_place_for_it(self, servers: Servers) -> None:
        image = servers.image.rename(servers.folder / "image.json")
        servers.image = image
        servers.serve()
        servers.listen()
        refused = mirror(servers, image)
        assert (refused.returncode, refused.stderr) == (
            1,
            f"the report {image}: that is the image\n".encode(),
        )
        assert image.stat().st_size == SIZE

    def test_what_is_neither_page_nor_data(self, servers: Servers) -> None:
        servers.serve()
        servers.listen()
        refused = mirror(servers, servers.folder / "report.txt")
        assert refused.returncode == 2
        assert b"it ends in .html or .json" in refused.stderr
        lines = ("mirror", "127.0.0.1", servers.place[3], "report=relative.json")
        code, text = ask(servers.source_sock, *lines)
        assert (code, text) == (1, "report: 'relative.json' has to begin with /")


class TestFailed:
    def test_is_a_warning_and_never_a_failed_migration(self, servers: Servers) -> None:
        source, destination = servers.serve(), servers.listen()
        folder = servers.folder / "reports"
        folder.mkdir()
        servers.start_mirroring(*SLOWLY, "--report", str(folder / "report.html"))
        folder.rmdir()
        ask(servers.source_sock, "mirror_max_bps", "0")
        servers.complete(source, destination)
        source.wait_for("warn .*the report can't be written: .*No such file")

    def test_a_folder_that_may_not_be_written_to_is_found_out_before(
        self, servers: Servers
    ) -> None:
        place = ("--addr", "127.0.0.1", "--port", "0", "--sock", str(servers.source_sock))
        source = servers.children.start(
            *BOUND_BY_PERMISSIONS,
            *(script("flexmigrate"), "serve", *place, "--file", str(servers.image)),
        )
        source.listening()
        servers.listen()
        folder = servers.folder / "reports"
        folder.mkdir(mode=0o500)
        refused = mirror(servers, folder / "report.html")
        assert "may not write to" in refused.stderr.decode()

    def test_one_that_never_began_has_no_report(self, servers: Servers) -> None:
        servers.serve()
        servers.listen("127.0.0.2")
        report = servers.folder / "report.html"
        refused = mirror(servers, report)
        assert refused.returncode == 1
        assert refused.stderr.startswith(b"Mirror was rejected: ")
        assert b"access list" in refused.stderr
        assert flexmigrate("wait", "--sock", str(servers.source_sock)).returncode == 1
        assert not report.exists()
