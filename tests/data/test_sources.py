"""Documents and their sources: what a user's files become, and every way they can be wrong."""

import json
import sys
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3lm.data import documents as documents_module
from i3lm.data.documents import (
    check_messages,
    cut,
    line_form,
    parse_conversation,
    read_text_file,
)
from i3lm.data.sources import open_source
from i3lm.errors import UserError

TALK = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi there"},
    {"role": "user", "content": "how are you?"},
    {"role": "assistant", "content": "fine"},
]
LINE = "[INST] hello [/INST] hi there [INST] how are you? [/INST] fine"


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(spec, **options) -> list[str | None]:
    return [document.text for document in open_source(spec, **options)]


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


# Rows


def jsonl(path: Path, *rows) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def parquet(path: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_jsonl_columns(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"text": "[x] one", "id": 1}, {"text": "two\nlines"})
    assert texts(path) == ["[x] one", "two\nlines"]
    path = jsonl(tmp_path / "b.jsonl", {"story": "one", "text": "no"}, {"story": None})
    source = open_source(path, text_column="story")
    assert [document.text for document in source] == ["one"]
    assert source.skipped["empty"] == 1
    path = jsonl(tmp_path / "c.jsonl", {"messages": [{**m, "id": 3} for m in TALK], "text": "no"})
    assert [document.messages for document in open_source(path)] == [TALK]
    path = jsonl(tmp_path / "d.jsonl", {"dialogue": TALK})
    assert [d.messages for d in open_source(path, text_column="dialogue")] == [TALK]


def test_line_form_in_a_text_column(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"text": " "}, {"text": LINE}, {"text": LINE})
    assert [document.messages for document in open_source(path)] == [TALK, TALK]
    assert texts(path, documents="line") == [LINE, LINE]
    path = jsonl(tmp_path / "b.jsonl", {"text": "plain"}, {"text": LINE})
    assert texts(path) == ["plain", LINE]
    path = jsonl(tmp_path / "c.jsonl", {"text": LINE}, {"text": "plain"})
    with pytest.raises(UserError, match=r"c.jsonl:2: not a conversation"):
        list(open_source(path))


def test_byte_order_mark_and_blank_lines_in_jsonl(tmp_path):
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
    assert texts(path) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', r":2: not valid JSON \(.*\); every line must be one obj"),
        (b'[{"text": "a"}]', r":1: a JSON list, not an object; .*jq"),
        (b"[" * 100_000, r":1: not valid JSON"),
        (b'{"text": "a"}\n{"text": "\xe9"}', r":2: byte 24 is not UTF-8"),
        (b'{"body": "a", "id": 1}', r":1: no column `messages` or `text`; the columns are body, i"),
        (b"{}", r":1: no column `messages` or `text`; the columns are none: name one with --text-"),
        (b'{"text": 3}', r":1: the column holds neither text nor messages but a int"),
        (b'{"text": "\\ud800"}', r":1: half of a surrogate pair"),
        (b'{"messages": [{"role": "user"}]}', r":1: message 1 has no text in `content`; messages"),
        (b'{"messages": ["x"]}', r":1: messages are not a list of objects"),
        (b'{"messages": []}', r":1: the last message is not the assistant's"),
    ],
)
def test_rows_that_do_not_fit(tmp_path, content, message):
    path = write(tmp_path / "a.jsonl", content)
    with pytest.raises(UserError, match=message) as caught:
        list(open_source(path))
    assert "\n" not in str(caught.value)


def test_missing_column_lists_the_columns(tmp_path):
    path = parquet(tmp_path / "a.parquet", body=["x"], id=[1])
    with pytest.raises(UserError, match="no column 'story'; the columns are body, id"):
        list(open_source(path, text_column="story"))


def test_endless_json_line(tmp_path, monkeypatch):
    monkeypatch.setattr("i3lm.data.rows._LONGEST_ROW", 16)
    path = write(tmp_path / "a.jsonl", '{"text": "0123456789"}')
    with pytest.raises(UserError, match=r":1: a line of more than 64 MiB"):
        list(open_source(path))


USER, ASSISTANT = TALK[:2]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([ASSISTANT], "message 1 has role 'assistant' instead of 'user'"),
        ([USER, USER, ASSISTANT], "message 2 has role 'user' instead of 'assistant'"),
        ([USER, {"role": "system", "content": "x"}], "message 2 has role 'system'"),
        ([USER], "the last message is not the assistant's"),
        ([{"role": "system", "content": "x"}], "the last message is not"),
        ([USER, {"role": "assistant", "content": " "}], "message 2 is empty"),
        ("text", "not a list"),
    ],
)
def test_messages_that_are_no_conversation(messages, message):
    with pytest.raises(UserError, match=message):
        check_messages(messages, "here")


def test_parquet(tmp_path):
    path = parquet(tmp_path / "a.parquet", text=["one", None, "three", "four", "five"])
    source = open_source(path)
    found = list(source)
    assert [document.text for document in found] == ["one", "three", "four", "five"]
    assert found[-1].where == f"{path}, row 5"
    assert source.skipped["empty"] == 1
    assert source.progress > 0.9
    path = parquet(tmp_path / "b.parquet", messages=[TALK, TALK])
    assert [document.messages for document in open_source(path)] == [TALK, TALK]
    path = parquet(tmp_path / "c.parquet", text=[LINE])
    assert [document.messages for document in open_source(path)] == [TALK]


def test_parquet_that_is_none(tmp_path):
    path = write(tmp_path / "a.parquet", "no such thing")
    with pytest.raises(UserError, match=r"a.parquet: not a readable Parquet file"):
        list(open_source(path))


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    path = parquet(tmp_path / "a.parquet", text=["one"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r'pip install "i3lm\[parquet\]"'):
        list(open_source(path))


# Folders, patterns, several sources


def test_folder(tmp_path):
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "a" / "z.TXT", "z")
    jsonl(tmp_path / "c.jsonl", {"text": "c"})
    parquet(tmp_path / "d.parquet", text=["d"])
    write(tmp_path / "notes.md", "not read")
    write(tmp_path / ".hidden.txt", "not read")
    write(tmp_path / ".cache" / "x.txt", "not read")
    source = open_source(tmp_path)
    assert [document.text for document in source] == ["z", "b", "c", "d"]
    assert source.description == f"{tmp_path} (4 files)"
    assert len(source.files) == 4


def test_patterns_and_several(tmp_path):
    for name in ("a", "b", "c/d"):
        write(tmp_path / f"{name}.txt", name)
    write(tmp_path / "e.md", "e")
    assert texts(f"{tmp_path}/*.txt") == ["a", "b"]
    assert texts(f"{tmp_path}/**/*.txt") == ["a", "b", "c/d"]
    assert texts([tmp_path / "e.md", f"{tmp_path}/b*", tmp_path]) == ["e", "b", "a", "c/d"]
    assert texts(tmp_path / "a.txt") == ["a"]


def test_file_names_with_pattern_characters(tmp_path):
    assert texts(str(write(tmp_path / "a[1].txt", "x"))) == ["x"]


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no such file or folder; check the path"):
        open_source(tmp_path / "a.txt")
    with pytest.raises(UserError, match="no file matches this pattern"):
        open_source(f"{tmp_path}/*.txt")
    with pytest.raises(UserError, match=r"no \.txt, \.jsonl, \.parquet file in this folder"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="no data named"):
        open_source([])
    with pytest.raises(UserError, match=r"data/a\.txt: no such file or folder"):
        open_source("data/a.txt")


def test_file_that_cannot_be_read(tmp_path):
    path = write(tmp_path / "a.txt", "x")
    source = open_source(path)
    path.unlink()
    with pytest.raises(UserError, match=r"a\.txt: cannot be read"):
        list(source)


# Datasets of the Hub, through a stand-in for the package


@pytest.fixture
def hub(monkeypatch):
    calls = []

    def load_dataset(path, name=None, *, split, streaming):
        calls.append((path, name, split, streaming))
        if path == "no/body":
            raise FileNotFoundError("Dataset 'no/body'\ndoesn't exist")
        return [{"text": LINE}, {"text": "[INST] a"}, {"text": ""}, {"text": LINE}]

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_hub_dataset(hub):
    source = open_source("starhopp3r/TinyChat", split="test")
    assert [document.messages for document in source] == [TALK, TALK]
    assert source.skipped == {"empty": 1, "unfit": 1}  # nobody here can mend it
    assert source.files == ()
    assert next(iter(source)).where == "starhopp3r/TinyChat[test], row 1"
    list(open_source("owner/name:small"))
    assert hub[0] == ("starhopp3r/TinyChat", None, "test", True)
    assert hub[-1] == ("owner/name", "small", "train", True)


def test_hub_dataset_errors(hub, tmp_path):
    with pytest.raises(UserError, match=r"no such file, and no dataset .*FileNotFoundError: Data"):
        list(open_source("no/body"))
    with pytest.raises(UserError, match="column"):
        list(open_source("owner/name", text_column="body"))
    with pytest.raises(UserError, match="must be the only source"):
        open_source([write(tmp_path / "a.txt", "x"), "owner/name"])


def test_hub_dataset_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r'^owner/name: no such file; .*pip install "i3lm\[hub\]"'):
        open_source("owner/name")


# The embedded conversations


def test_embedded_conversations():
    pytest.importorskip("i3lm.data.conversations")
    source = open_source(size=5, seed=3)
    found = list(source)
    assert len(found) == 5
    assert found == list(source)
    assert all(check_messages(document.messages, "") for document in found)
    assert source.progress == 1.0
    assert source.identity != open_source(size=5, seed=4).identity
    with pytest.raises(UserError, match="too few"):
        open_source(size=1)
