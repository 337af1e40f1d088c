"""Lines taken apart in compiled code: what is white space, how long, which digest."""

import hashlib
import sys

import numpy as np
import pytest

from i3lm.tokenizer.kernel import LineTable, library, scan_lines

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not built")


def test_white_space_is_what_python_strips():
    every = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000 and c != 10]
    blank = [not character.strip() for character in every]
    alone = scan_lines("\n".join(every).encode(), False, b"")
    assert (alone.kinds == np.where(blank, LineTable.BLANK, LineTable.HERE)).all()
    for form in ("[INST] {}a [/INST] b", "[INST] a [/INST] b{}"):
        lines = "\n".join(form.format(character) for character in every)
        table = scan_lines(lines.encode(), True, b"")
        # Spaces at the edge of a turn are for Python to strip.
        assert (table.kinds == np.where(blank, LineTable.FOR_PYTHON, LineTable.HERE)).all()


def test_lines_characters_and_digests():
    lines = ["aé日😀"[n % 4] * n for n in range(1, 400)]
    table = scan_lines("\n".join(lines).encode(), False, b"12345678")
    assert [
        table.data[b:e].decode() for b, e in zip(table.begins, table.ends, strict=True)
    ] == lines
    assert table.characters.tolist() == [len(line) for line in lines]
    assert [digest.tobytes() for digest in table.digests] == [
        hashlib.blake2b(line.encode(), digest_size=16, salt=b"12345678").digest() for line in lines
    ]


@pytest.mark.parametrize(("text", "lines"), [("", 0), ("\n", 1), ("a", 1), ("a\n", 1), ("\na", 2)])
def test_line_ends(text, lines):
    assert len(scan_lines(text.encode(), True, b"").kinds) == lines
