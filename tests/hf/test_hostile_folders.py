"""Model folders that are damaged, torn or made to harm: no wrong model ever loads."""

import json
import os
import random
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from i3lm.errors import UserError
from i3lm.folder import load_folder
from i3lm.tensorfile import write_tensors
from i3lm.tensorheader import read_header

FILES = ("model.safetensors", "config.json", "tokenizer.json")


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def damaged(good: bytes, chance: random.Random) -> bytes:
    """Flip one bit, cut the end off, or write a stretch of zeros."""
    at = chance.randrange(len(good))
    return (
        good[:at] + bytes([good[at] ^ 1 << chance.randrange(8)]) + good[at + 1 :],
        good[:at],
        good[:at] + bytes(min(512, len(good) - at)) + good[at + 512 :],
    )[chance.choice((0, 0, 0, 1, 2))]


def same(a, b) -> bool:
    return (
        a.architecture == b.architecture
        and a.tokenizer.tokens == b.tokenizer.tokens
        and all(map(torch.equal, a.network.parameters(), b.network.parameters()))
    )


@pytest.mark.parametrize("name", FILES)
def test_damage_anywhere_is_found_or_of_no_effect(copy, folder, name):
    """300 cases a file: a one-line error, or the very same model."""
    path, truth, chance, found = copy / name, load_folder(folder), random.Random(name), 0
    good = path.read_bytes()
    for _ in range(300):
        path.write_bytes(damaged(good, chance))
        try:
            assert same(load_folder(copy), truth)
        except UserError:
            found += 1
    assert found > 150


def header_file(path, header: object, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def tensor(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({}, 1 << 62),
        ({}, 1 << 63),
        (b"[" * 100_000, None),
        (b"\xff\xfe{}", None),
        ([], None),
        ({"w": 3}, None),
        ({"w": tensor([2], 0, 4)}, None),
        ({"w": tensor([-1], 0, -4)}, None),
        ({"w": tensor([1 << 40, 1 << 40], 0, 4 << 80)}, None),
        ({"w": tensor([1.0], 0, 4)}, None),
        ({"w": tensor([True], 0, 4)}, None),
        ({"w": tensor([1], 0, 4), "v": tensor([1], 0, 4)}, None),  # one within the other
        ({"w": tensor([1], 4, 8)}, None),  # bytes that nobody owns
        ({"w": tensor([1], 0, 4, "F8_E4M3")}, None),
        ({"__metadata__": {"a": 1}, "w": tensor([1], 0, 4)}, None),
        ({f"w{i}": tensor([0], 0, 0) for i in range(100_001)}, None),
    ],
    ids=str,
)
def test_hostile_headers_are_refused(copy, header, length):
    path = copy / "model.safetensors"
    header_file(path, header, bytes(4), length)
    with pytest.raises(ValueError, match="header"):
        read_header(path)
    with pytest.raises(UserError, match="is damaged"):
        load_folder(copy)


def test_a_huge_file_is_refused_before_it_is_read(copy):
    """A terabyte on paper: its header does not fit config.json."""
    path, size = copy / "model.safetensors", 1 << 40
    header_file(path, {"w": tensor([size // 4], 0, size)})
    os.truncate(path, path.stat().st_size + size)
    with pytest.raises(UserError, match=r"does not fit its config\.json"):
        load_folder(copy)
    path.unlink()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pipe", "folder", "terminal"])
@pytest.mark.timeout(20)
def test_what_is_no_plain_file_is_refused_and_not_waited_for(copy, name, kind):
    (copy / name).unlink()
    if kind == "pipe":
        os.mkfifo(copy / name)
    elif kind == "folder":
        (copy / name).mkdir()
    else:
        (copy / name).symlink_to("/dev/zero")
    with pytest.raises(UserError):
        load_folder(copy)


def test_another_models_config_is_refused_even_where_shapes_agree(copy):
    """The number of heads shows in no shape; the weight file knows it."""
    path = copy / "config.json"
    config = json.loads(path.read_text())
    config["num_attention_heads"] = 1 if config["num_attention_heads"] != 1 else 2
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"does not fit its config\.json"):
        load_folder(copy)


@given(st.dictionaries(st.text(max_size=8), st.lists(st.integers(0, 3), max_size=3), max_size=5))
def test_what_we_write_has_the_header_that_we_read(tmp_path_factory, shapes):
    path = tmp_path_factory.mktemp("tensors") / "file"
    shapes.pop("__metadata__", None)
    write_tensors(path, {name: torch.ones(shape) for name, shape in shapes.items()}, {"a": "b"})
    header = read_header(path)
    assert {name: entry.shape for name, entry in header.tensors.items()} == {
        name: tuple(shape) for name, shape in shapes.items()
    }
    assert header.metadata["a"] == "b"
