"""Where documents come from: folders, patterns, datasets of the Hub, the embedded ones."""

import os
import sys
import types

import pytest
from sources_helpers import LINE, TALK, jsonl, parquet, texts, write

from i3lm.data.documents import check_messages
from i3lm.data.sources import open_source
from i3lm.errors import UserError

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
    monkeypatch.setattr("i3lm.data.sources._reach", lambda path: None)
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_a_pipe_is_refused(tmp_path):
    """It can be read once; nobody may write to it, so it must not even be opened."""
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", "-"):
        with pytest.raises(UserError, match="save it as a file"):
            open_source(name)
