"""Shell sessions are found in both kinds of document, and what they print is told apart."""

from __future__ import annotations

import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from support.shell_sessions import Step, Untried, blurred, outputs, script, sessions, untried

MARKDOWN = """
# Title

    $ not a session

```console
$ echo one
one
```

```console
$ true
$ printf 'two\\nthree\\n'
two
three
```
"""

RST = """
Title

.. code-block:: console

    $ echo one
    one

.. code-block:: text

    $ not a session

.. code-block:: console

    $ true
    $ printf 'two\\nthree\\n'
    two
    three
"""

UNTRIED = """
Text.

.. begin options

::

    flexmigrate generated

.. end options

.. not run: it takes
   two hosts

These are shown::

    flexmigrate serve --port 1
    # a remark
    /opt/bin/flexmigrate status

    flexmigrate wait

And this, without a reason:

.. code-block:: text

    make everything

.. code-block:: toml

    make = "no command"

.. code-block:: console

    $ flexmigrate help
"""

STEPS = [
    Step("echo one", ["one"]),
    Step("true"),
    Step("printf 'two\\nthree\\n'", ["two", "three"]),
]


class ShellSessions(SynchronousTestCase):
    def test_all_steps_are_found_in_a_document(self) -> None:
        for suffix, text in ((".md", MARKDOWN), (".rst", RST)):
            document = Path(self.mktemp()).with_suffix(suffix)
            document.write_text(text)
            self.assertEqual(sessions(document), STEPS)

    def test_commands_outside_of_sessions_are_found_with_the_reason(self) -> None:
        document = Path(self.mktemp()).with_suffix(".rst")
        document.write_text(UNTRIED)
        shown = ["flexmigrate serve --port 1", "/opt/bin/flexmigrate status", "flexmigrate wait"]
        expected = [Untried(shown, "it takes\n   two hosts"), Untried(["make everything"], "")]
        self.assertEqual(untried(document), expected)

    def test_a_script_tells_what_each_step_printed(self) -> None:
        ran = subprocess.run(["bash"], input=script(STEPS, {}), capture_output=True, text=True)
        self.assertEqual(outputs(ran.stdout), [step.printed for step in STEPS])

    def test_ports_are_replaced(self) -> None:
        self.assertIn("\nserve 4711\n", script([Step("serve 10809")], {"10809": 4711}))

    def test_nothing_is_left_in_the_background(self) -> None:
        # It would hold the pipe open, and `run` reads to its end.
        steps = [Step("sleep 60 & echo $!")]
        ran = subprocess.run(["bash"], input=script(steps, {}), capture_output=True, text=True)
        ((pid,),) = outputs(ran.stdout)
        self.assertFalse(Path("/proc", pid, "exe").exists())

    def test_only_numbers_are_blurred(self) -> None:
        self.assertEqual(blurred(["12.5 MiB in 3 passes"]), blurred(["0.7 MiB in 41 passes"]))
        self.assertNotEqual(blurred(["3 passes"]), blurred(["3 pass"]))
