"""The file of checksums: no bit of it, or of what it describes, changes unnoticed."""

import pytest

from lightjax.checkpoint.checksums import FILE, damage, write_checksums


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "array").mkdir()
    (tmp_path / "array" / "data").write_bytes(bytes(range(7)))
    (tmp_path / "meta.json").write_text("{}")
    write_checksums(tmp_path)
    assert damage(tmp_path) is None
    return tmp_path


@pytest.mark.parametrize("name", [FILE, "array/data", "meta.json"])
def test_every_flipped_bit_is_found(directory, name):
    content = (directory / name).read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (directory / name).write_bytes(flipped)
        found = damage(directory)
        assert found is not None, f"bit {bit % 8} of byte {bit // 8}: {bytes(flipped)!r}"
        assert name in found or name == FILE
    (directory / name).write_bytes(content)
    assert damage(directory) is None
