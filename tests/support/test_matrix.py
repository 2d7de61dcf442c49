from __future__ import annotations

import os
import tempfile
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from support.matrix import WRITE, Matrix

EMPTY = "before\n.. matrix toys\n\n.. end of matrix\nafter\n"
FILLED = """\
before
.. matrix toys

====  ===  ======
\\     red  blue
====  ===  ======
ball  yes  no (1)
kite  yes  yes
====  ===  ======

(1) There is none.

.. end of matrix
after
"""


class MatrixTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.document = Path(folder.name, "page.rst")
        self.matrix = Matrix(
            "toys", ["ball", "kite"], ["red", "blue"], {("ball", "blue"): "There is none."}
        )

    def see_all(self) -> None:
        for row, column in self.matrix.cells:
            self.matrix.fill_in(row, column, works=(row, column) != ("ball", "blue"))

    def settled(self, text: str, *, write: bool) -> str:
        self.document.write_text(text)
        with mock.patch.dict(os.environ, {WRITE: "1" if write else ""}):
            self.matrix.settle(self.document)
        return self.document.read_text()

    def test_it_is_written_where_that_is_wanted(self) -> None:
        self.see_all()
        self.assertEqual(self.settled(EMPTY, write=True), FILLED)

    def test_it_is_compared_otherwise(self) -> None:
        self.see_all()
        self.assertEqual(self.settled(FILLED, write=False), FILLED)
        for wrong in (EMPTY, FILLED.replace("no (1)", "yes")):
            with self.assertRaisesRegex(AssertionError, "not up to date"):
                self.settled(wrong, write=False)

    def test_a_page_without_the_table(self) -> None:
        with self.assertRaisesRegex(AssertionError, "no matrix toys"):
            self.settled("before\n", write=True)

    def test_what_was_not_to_be_expected(self) -> None:
        for cell, works in ((("ball", "red"), False), (("ball", "blue"), True)):
            with self.assertRaises(AssertionError):
                self.matrix.fill_in(*cell, works=works)

    def test_it_is_complete_once_every_cell_was_seen(self) -> None:
        self.matrix.fill_in("ball", "red", works=True)
        self.assertFalse(self.matrix.is_complete)
        self.see_all()
        self.assertTrue(self.matrix.is_complete)
