"""Files and their checksums."""

from __future__ import annotations

from rs_aligner.files import checksum


def test_a_checksum_is_xxh3_with_the_published_value_of_nothing():
    assert checksum(b"") == "2d06800538d394c2"


def test_a_flipped_bit_changes_a_checksum():
    content = bytearray(b"a line of a ledger\n")
    before = checksum(memoryview(content))
    content[3] ^= 1 << 5
    assert checksum(memoryview(content)) != before
