"""Where what belongs to an image is kept: beside files, and not beside the nodes of devices."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import ImageError
from flexmigrate.image import places
from flexmigrate.image.disk import SYSTEM
from flexmigrate.migration.ownership.ownership import Ownership
from flexmigrate.migration.ownership.status import look
from flexmigrate.wire.handover import State

SDA, SDA1 = os.makedev(8, 0), os.makedev(8, 1)


class WithDevices:
    """The system's disk, on which some files pass for block devices: by path, their numbers."""

    def __init__(self, devices: dict[str, int]) -> None:
        self.devices = devices

    def __getattr__(self, name: str) -> Any:
        return getattr(SYSTEM, name)

    def stat(self, path: str) -> Any:
        number = self.devices.get(path)
        if number is None:
            return SYSTEM.stat(path)
        return mock.Mock(st_mode=stat.S_IFBLK | 0o660, st_rdev=number)


class PlacesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(os.path.realpath(tempfile.mkdtemp()))
        self.addCleanup(shutil.rmtree, self.folder)
        self.state = self.folder / "state"
        self.patch(os, "environ", {**os.environ, places.VARIABLE: str(self.state)})
        self.image = self.folder / "sda"
        self.image.write_bytes(bytes(8192))
        self.disk: Any = WithDevices({str(self.image): SDA, "/dev/sda1": SDA1, "/dev/sda": SDA})
        self.sysfs = self.folder / "sys" / "dev"
        self.drive = self.folder / "sys" / "block" / "sda"
        (self.drive / "sda1").mkdir(parents=True)
        self.sysfs.mkdir()
        self.patch(places, "SYSFS", str(self.sysfs))
        (self.sysfs / "8:0").symlink_to(self.drive)
        (self.sysfs / "8:1").symlink_to(self.drive / "sda1")
        (self.drive / "sda1" / "partition").write_text("1\n")

    def name(self, path: str) -> str:
        """Return the name in the state folder."""
        place = Path(places.beside(self.disk, path))
        self.assertEqual(place.parent, self.state / "devices")
        return place.name

    def test_files_and_what_is_not_there_keep_it_beside_them(self) -> None:
        for path in (str(self.folder / "disk.img"), __file__):
            self.assertEqual(places.beside(self.disk, path), path)

    def test_devices_are_told_apart_by_what_they_are(self) -> None:
        (self.drive / "wwid").write_text("naa.5000c500a1b2c3d4\n")
        self.assertEqual(self.name("/dev/sda"), "naa.5000c500a1b2c3d4")
        self.assertEqual(self.name("/dev/sda1"), "naa.5000c500a1b2c3d4-part1")
        (self.drive / "dm").mkdir()
        (self.drive / "dm" / "uuid").write_text("LVM-abc\n")
        self.assertEqual(self.name("/dev/sda"), "LVM-abc")

    def test_names_that_are_none_of_a_file_are_made_so_and_differ(self) -> None:
        names = set()
        for text in ("/images/a", "_images_a", "/images/a ", "..", "a" * 300, "a" * 301, "\u00e4"):
            (self.drive / "wwid").write_text(text)
            name = self.name("/dev/sda")
            self.assertRegex(name, r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,150}$")
            names.add(name)
        self.assertEqual(len(names), 6)  # white space at the end means nothing

    def test_without_anything_else_it_is_the_nodes_name(self) -> None:
        self.assertRegex(self.name("/dev/sda"), "^node-_dev_sda-[0-9a-f]{16}$")
        self.assertNotEqual(self.name("/dev/sda"), self.name("/dev/sda1"))

    def test_the_folder_is_fixed_unless_the_environment_names_one(self) -> None:
        del os.environ[places.VARIABLE]
        found = places.beside(self.disk, "/dev/sda")
        self.assertTrue(found.startswith("/var/lib/flexmigrate/devices/"))

    def test_however_the_folder_is_written_it_is_the_same(self) -> None:
        expected = places.beside(self.disk, "/dev/sda")
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        for text in (f"{self.state}/", f"{self.folder}/./state", "state", "state/"):
            os.environ[places.VARIABLE] = text
            self.assertEqual(places.beside(self.disk, "/dev/sda"), expected)
            places.make_folder(expected)
            self.assertTrue((self.state / "devices").is_dir())
            shutil.rmtree(self.state)

    def test_parts_of_one_file_are_not_the_same_device(self) -> None:
        loop = self.drive / "loop"
        loop.mkdir()
        (loop / "backing_file").write_text("/images/a\n")
        names = []
        for offset, limit in (("0", "0"), ("1048576", "0"), ("0", "1048576")):
            (loop / "offset").write_text(offset)
            (loop / "sizelimit").write_text(limit)
            names.append(self.name("/dev/sda"))
        self.assertEqual(len(set(names)), 3)

    def test_images_of_a_cluster_are_known_by_their_pool_and_id(self) -> None:
        names = []
        (self.drive / "device").mkdir()
        for pool in ("2", "3"):
            (self.drive / "device" / "image_id").write_text("10074b0dc51\n")
            (self.drive / "device" / "cluster_fsid").write_text("f00f\n")
            (self.drive / "device" / "pool_id").write_text(f"{pool}\n")
            (self.drive / "device" / "current_snap").write_text("-\n")
            names.append(self.name("/dev/sda"))
        self.assertIn("10074b0dc51_f00f_2", names[0])
        self.assertEqual(len(set(names)), 2)

    def test_where_it_can_not_be_told_nothing_is_guessed(self) -> None:
        (self.drive / "wwid").mkdir()  # neither a text nor nothing
        with self.assertRaises(IsADirectoryError):
            self.name("/dev/sda")
        shutil.rmtree(self.sysfs)
        with self.assertRaises(FileNotFoundError):
            self.name("/dev/sda")

    def test_a_journal_beside_the_node_is_told_of(self) -> None:
        (self.folder / "sda.handover").write_text("from an earlier version")
        with self.assertRaisesRegex(ImageError, "move it to .*devices/"):
            look(str(self.image), self.disk)

    def test_a_devices_journal_and_marker_are_kept_there(self) -> None:
        ownership = Ownership(str(self.image), 8192, self.disk)
        ownership.expect()
        self.assertTrue(look(str(self.image), self.disk).is_incomplete)
        ownership.own_plainly()
        ownership.clear_marker()
        self.assertIs(look(str(self.image), self.disk).state, State.OWNER)
        self.assertEqual({each.name for each in self.folder.iterdir()}, {"sda", "state", "sys"})
        (left,) = (self.state / "devices").iterdir()
        self.assertTrue(left.name.endswith(".handover"))

    def test_where_the_folder_can_not_be_made_it_is_told_of(self) -> None:
        os.environ[places.VARIABLE] = str(self.image / "nowhere")
        ownership = Ownership(str(self.image), 8192, self.disk)
        self.assertRaises(OSError, ownership.probe)
        self.assertIs(ownership.state, State.NONE)
