"""The comparison that other tests trust sees every single byte, in data and in holes."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.images import (
    MIB,
    allocated,
    assert_same,
    blank_image,
    difference,
    filesystem_image,
    random_image,
    sparse_image,
)

SIZE = 3 * MIB + 512


def break_byte(path: Path, offset: int) -> None:
    with path.open("r+b") as image:
        image.seek(offset)
        (byte,) = image.read(1)
        image.seek(offset)
        image.write(bytes([byte ^ 1]))


def test_an_image_is_the_same_for_the_same_seed_only(tmp_path: Path) -> None:
    one = random_image(tmp_path / "one", SIZE, seed=1)
    assert_same(one, random_image(tmp_path / "again", SIZE, seed=1))
    assert difference(one, random_image(tmp_path / "other", SIZE, seed=2)) is not None


@pytest.mark.parametrize("offset", [0, 4095, 4096, MIB - 1, MIB, 2 * MIB + 77, SIZE - 1])
def test_one_broken_bit_is_found_and_named(tmp_path: Path, offset: int) -> None:
    left = random_image(tmp_path / "left", SIZE)
    right = random_image(tmp_path / "right", SIZE)
    break_byte(right, offset)
    with pytest.raises(AssertionError, match=rf"differ first at byte {offset} \(block"):
        assert_same(left, right)


def test_of_two_broken_bytes_the_first_is_named(tmp_path: Path) -> None:
    left = random_image(tmp_path / "left", SIZE)
    right = random_image(tmp_path / "right", SIZE)
    break_byte(right, 2 * MIB)
    break_byte(right, 5)
    assert "at byte 5 " in str(difference(left, right))


def test_a_byte_in_a_hole_is_found(tmp_path: Path) -> None:
    left = blank_image(tmp_path / "left", SIZE)
    right = blank_image(tmp_path / "right", SIZE)
    break_byte(right, MIB + 1)
    assert f"at byte {MIB + 1} " in str(difference(left, right))


def test_a_hole_is_the_same_as_written_zeroes(tmp_path: Path) -> None:
    written = tmp_path / "written"
    written.write_bytes(bytes(SIZE))
    assert_same(blank_image(tmp_path / "hole", SIZE), written)


def test_images_of_different_sizes_differ_even_if_one_begins_as_the_other(tmp_path: Path) -> None:
    left = blank_image(tmp_path / "left", SIZE)
    right = blank_image(tmp_path / "right", SIZE + 512)
    assert f"{SIZE + 512}" in str(difference(left, right))


def test_a_sparse_image_has_data_where_it_was_asked_for_and_no_more(tmp_path: Path) -> None:
    image = sparse_image(tmp_path / "image", 64 * MIB, iter([(8 * MIB, MIB), (63 * MIB, 4096)]))
    assert image.stat().st_size == 64 * MIB
    assert MIB + 4096 <= allocated(image) < 2 * MIB
    data = image.read_bytes()
    assert any(data[8 * MIB : 9 * MIB])
    assert not any(data[9 * MIB : 63 * MIB])


def test_a_filesystem_image_holds_the_files(tmp_path: Path) -> None:
    contents = tmp_path / "contents"
    contents.mkdir()
    (contents / "letter").write_bytes(b"dear reader" * 1000)
    image = filesystem_image(tmp_path / "image", 8 * MIB, contents).read_bytes()
    assert image[0x438:0x43A] == b"\x53\xef"  # ext4's magic number
    assert b"dear reader" * 300 in image
