"""The examples that are programs, run as their first lines say."""

import sys

from support.examples import EXAMPLES
from support.images import random_image
from support.processes import run, script


def test_an_application_serves_and_a_client_reads(children, tmp_path):
    image = random_image(tmp_path / "disk.img", 2 << 20)
    settings = {"DISK": str(image), "ENDPOINT": "tcp:0:interface=127.0.0.1"}
    words = ("--nodaemon", "--pidfile=", f"--rundir={tmp_path}", "-y", str(EXAMPLES / "export.tac"))
    server = children.start(script("twistd"), *words, env=settings)
    host, port = server.listening()
    client = run(sys.executable, str(EXAMPLES / "client.py"), f"nbd://{host}:{port}/disk")
    assert client.returncode == 0, client.stderr
    first = image.read_bytes()[: 1 << 20]
    said = f"{2 << 20} bytes; of the first {1 << 20}, {len(first) - first.count(0)} aren't 0\n"
    assert client.stdout.decode() == said


def test_the_conformance_suite_runs_as_the_page_shows_it(monkeypatch, tmp_path):
    test = EXAMPLES / "devices/test_memory.py"
    monkeypatch.chdir(test.parent)
    words = ("-m", "twisted.trial", f"--temp-directory={tmp_path}/trial", test.stem)
    done = run(sys.executable, *words)
    assert done.returncode == 0, done.stdout
    assert b"PASSED" in done.stdout
