"""Rows of JSON lines and Parquet: which column is read, and every way a row can be wrong."""

import sys

import pytest
from sources_helpers import LINE, TALK, jsonl, parquet, texts, write

from i3lm.data.documents import check_messages
from i3lm.data.sources import open_source
from i3lm.errors import UserError


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
