"""Text files and the documents they become: conversations in line form, division, bad bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sources_helpers import LINE, TALK, texts, write

from i3lm.data import documents as documents_module
from i3lm.data.documents import cut, line_form, parse_conversation, read_text_file
from i3lm.data.sources import open_source
from i3lm.errors import UserError

# Conversations in line form


def test_line_form_and_parser_are_inverse():
    assert parse_conversation(LINE) == TALK
    assert line_form(TALK) == LINE
    assert parse_conversation("[INST]hello[/INST] hi there[INST]how are you?[/INST]fine ") == TALK


def test_system_message_stands_before_the_first_user_message():
    system = {"role": "system", "content": " Be kind. "}
    assert line_form([system, *TALK]) == "[INST] Be kind.\n\n" + LINE.removeprefix("[INST] ")
    assert line_form([{"role": "system", "content": " "}, *TALK]) == LINE


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        "[INST] hello",
        "[INST] hello [/INST]",
        "[INST] hello [/INST] hi [INST] more",
        "[INST] hello [/INST] hi [INST]",
        "[INST] hello [INST] hello [/INST] hi [/INST] hi",
        "[/INST] hello [INST] hi",
        "[INST] [/INST] hi",
        "x [INST] hello [/INST] hi",
        " [INST] hello [/INST] hi",
        "[INST] hello [/inst] hi",
    ],
)
def test_what_is_no_conversation(line):
    assert parse_conversation(line) is None


turn = st.text(min_size=1).map(str.strip).filter(lambda t: t and "[INST]" not in t)
turn = turn.filter(lambda t: "[/INST]" not in t)


@given(st.lists(st.tuples(turn, turn), min_size=1, max_size=4))
def test_any_turns_come_back(pairs):
    messages = [
        {"role": role, "content": content}
        for pair in pairs
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    assert parse_conversation(line_form(messages)) == messages


@given(st.lists(st.sampled_from(["[INST]", "[/INST]", "a", " ", "\n", "[", "INST]"])).map("".join))
def test_parser_takes_only_alternating_turns(line):
    messages = parse_conversation(line)
    if messages is not None:
        roles = [message["role"] for message in messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(m["content"] == m["content"].strip() != "" for m in messages)
        assert "".join(line_form(messages).split()) == "".join(line.split())


# Division of text files


@pytest.mark.parametrize(
    ("content", "division", "expected"),
    [
        ("one story\nanother story\n", "auto", ["one story", "another story"]),
        ("one story\nanother story", "auto", ["one story", "another story"]),
        ("  kept \t\n\n\n", "auto", ["  kept \t"]),
        ("A:\nbe it\n\nB:\nso\n", "auto", ["A:\nbe it\n\nB:\nso\n"]),
        ("A\n \nB", "auto", ["A\n \nB"]),
        ("A:\nbe it\n\n \nB:\nso\n", "paragraph", ["A:\nbe it", "B:\nso"]),
        ("A\n\nB\n", "line", ["A", "B"]),
        ("A\nB\n", "file", ["A\nB\n"]),
        ("A\n\nB\n<|endoftext|>\nC\n\n<|endoftext|>\n", "auto", ["A\n\nB", "C"]),
        ("\ufeffA\r\nB\rb\r\n", "auto", ["A", "B\rb"]),
        ("A\u2028a\u0085\x0b\nB", "auto", ["A\u2028a\u0085\x0b", "B"]),
        ("say [INST] x [/INST] y\n[INST] a [/INST] b\n", "auto",
         ["say [INST] x [/INST] y", "[INST] a [/INST] b"]),
        (LINE + "\n", "line", [LINE]),
    ],
)  # fmt: skip
def test_division_of_text_files(tmp_path, content, division, expected):
    assert texts(write(tmp_path / "a.txt", content), documents=division) == expected


def test_conversation_file(tmp_path):
    path = write(tmp_path / "chat.txt", f"\n{LINE}\n\n[INST] a [/INST] b\r\n")
    source = open_source(path)
    found = list(source)
    assert [document.messages for document in found] == [
        TALK,
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    ]
    assert [document.where for document in found] == [f"{path}:2", f"{path}:4"]
    assert all(document.text is None for document in found)
    assert found[0].characters == len(LINE) + 1
    assert source.skipped == {"empty": 2, "unfit": 0}
    assert source.progress == 1.0
    assert list(source) == found  # can be read again


def test_conversation_file_with_another_line(tmp_path):
    path = write(tmp_path / "chat.txt", f"{LINE}\nand then\n")
    with pytest.raises(UserError, match=r"chat.txt:2: not a conversation.*--documents line"):
        list(open_source(path))


def test_unknown_division(tmp_path):
    with pytest.raises(UserError, match="unknown division 'word'; take one of auto, line"):
        list(read_text_file(write(tmp_path / "a.txt", "x"), "word"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"good\nbad \xe9t\xe9\n", r"line 2, byte 9 is 0xE9, which is not UTF-8; "),
        (b"\xef\xbb\xbfgood\r\nx\0\xff", r"line 2, byte 10 is a NUL character; "),
        ("h\u00e9".encode("utf-16"), r"line 1, byte 0 is 0xFF"),
        (b"good\nend \xc3", r"line 2, byte 9 is 0xC3"),
    ],
)
def test_bytes_that_are_no_text(tmp_path, content, message):
    path = write(tmp_path / "a.txt", content)
    with pytest.raises(UserError, match=message) as caught:
        list(open_source(path))
    assert str(caught.value).startswith(str(path))


@pytest.fixture
def small_limits(monkeypatch):
    """Read in blocks of 8 bytes, documents of at most 32 characters."""
    monkeypatch.setattr(documents_module, "_BLOCK", 8)
    monkeypatch.setattr(documents_module, "MAX_CHARACTERS", 32)


def test_offset_of_a_bad_byte_in_a_later_block(tmp_path, small_limits):
    path = write(tmp_path / "a.txt", b"0123456\n" * 20 + b"01\xff\n")
    with pytest.raises(UserError, match="line 21, byte 162 is 0xFF"):
        list(read_text_file(path, "line"))


def test_places_are_counted_across_blocks(tmp_path, small_limits):
    path = write(tmp_path / "a.txt", "a\nb\nc\n\nd\ne\n\n\nf\n" + "g\n" * 9 + "h\n" * 30)
    places = [document.where for document in read_text_file(path, "line")]
    assert places == [f"{path}:{n + 1}" for n in range(48)]
    places = [document.where for document in read_text_file(path, "paragraph")]
    assert places == [f"{path}:{n}" for n in (1, 5, 9, 25, 41)]
    path = write(tmp_path / "b.txt", "a\n" * 40)
    assert [d.where for d in read_text_file(path, "file")] == [f"{path}:{n}" for n in (1, 17, 33)]


@pytest.mark.parametrize("text", ["\r\n", "\u00e9", "\u20ac", "\U0001f600"])
def test_a_line_is_never_cut_inside_a_character_or_line_end(tmp_path, small_limits, text):
    for before in range(24, 34):
        path = write(tmp_path / "a.txt", "x" * before + text + "yz")
        joined = "".join(document.text or "" for document in read_text_file(path, "file"))
        assert joined == "x" * before + text.replace("\r", "") + "yz"


@given(content=st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=200))
def test_whole_file_in_pieces_is_the_file(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("pieces") / "a.txt"
    content = (content * 3).lstrip("\ufeff")
    path.write_bytes(content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents_module, "_BLOCK", 8)
        patch.setattr(documents_module, "MAX_CHARACTERS", 32)
        pieces = [document.text for document in read_text_file(path, "file")]
        lines = [document.text for document in read_text_file(path, "line")]
        parts = list(cut(content))
    expected = content.replace("\r\n", "\n")
    assert "".join(pieces) == expected
    assert "".join(lines) == expected.replace("\n", "")
    assert "".join(parts) == content
    assert max(map(len, [*pieces, *lines, *parts])) <= 40  # a block more, where a line began


def test_long_documents_are_divided_at_line_ends(tmp_path, small_limits):
    content = "".join(f"line {n}\n" for n in range(30))
    path = write(tmp_path / "a.txt", content)
    pieces = texts(path, documents="file")
    assert "".join(pieces) == content
    assert len(pieces) > 5
    assert all(piece.endswith("\n") for piece in pieces)
    assert [p[-1] for p in list(cut("word " * 30))[:-1]] == [" "] * 4
