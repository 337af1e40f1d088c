"""Training on text that is not all on the disk: which tokens, in what order, what goes wrong."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from i3lm.data import Corpus, open_source, prepare, segments
from i3lm.data.passes import encode_documents
from i3lm.data.segments import Segments, SourceLost, TokenStream
from i3lm.data.streaming import (
    StreamedCorpus,
    StreamLoader,
    prepare_stream,
    sample_of,
)
from i3lm.errors import UserError
from i3lm.tokenizer import BOS, EOS

START = {"epoch": 0, "part": 0, "at": None, "batch": 0}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Five files: lines, a row with tags, and one file that is one document."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(4):
        story = "file {} tells story {} of the sea and {} ships, é"
        lines = [story.format(number, i, i * 7919 % 97) for i in range(400)]
        (folder / f"{number}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [f'{{"text": "row {i} of the {i % 13} hills"}}' for i in range(300)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def corpus(files, tmp_path_factory):
    source = open_source(files)
    return prepare_stream(40_000, source, tmp_path_factory.mktemp("data"), vocab_size=500)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(segments, "BATCH", 2_000)
    monkeypatch.setattr("i3lm.data.documents._BLOCK", 4_096)


def stream_of(corpus, files, **options) -> TokenStream:
    held_out = corpus.manifest["held_out_prefixes"]
    return TokenStream(open_source(files), corpus.tokenizer, held_out, **options)


def one_epoch(stream: TokenStream) -> np.ndarray:
    batches = itertools.takewhile(lambda pair: pair[1]["epoch"] == 0, stream.read(START))
    return np.concatenate([ids for ids, _ in batches])


def documents_in(ids: np.ndarray) -> list[bytes]:
    """Return the documents of whole token streams, sorted."""
    ends = np.flatnonzero(ids == EOS) + 1
    assert (ids[np.r_[0, ends[:-1]]] == BOS).all()
    return sorted(part.tobytes() for part in np.split(ids, ends[:-1]))


@pytest.mark.parametrize("ranks", [1, 2, 7])
def test_an_epoch_has_every_document_once_but_those_held_out(corpus, files, ranks):
    ids = encode_documents(corpus.tokenizer, list(open_source(files)))
    held_out = documents_in(np.array(corpus.held_out))
    expected = documents_in(ids)
    for document in held_out:
        expected.remove(document)
    assert len(held_out) == len(corpus.manifest["held_out_prefixes"]) > 5
    parts = [one_epoch(stream_of(corpus, files, share=(r, ranks))) for r in range(ranks)]
    assert sorted(itertools.chain(*map(documents_in, parts))) == expected
    assert all(len(part) > 200 for part in parts)


def test_parts_come_in_another_order_in_each_epoch_and_for_each_seed(corpus, files):
    whole = one_epoch(stream_of(corpus, files))
    again = one_epoch(stream_of(corpus, files, threads=3))
    other = one_epoch(stream_of(corpus, files, order_seed=5))
    assert np.array_equal(whole, again)
    assert not np.array_equal(whole, other)
    reader = stream_of(corpus, files).read({**START, "epoch": 1})
    second = np.concatenate([ids for ids, _ in itertools.islice(reader, 20)])
    assert not np.array_equal(whole[: len(second)], second)


def loader_of(corpus, folder: Path, source, seed: int = 3) -> StreamLoader:
    folder.mkdir(exist_ok=True)
    changes = {"segments": folder, "source": source, "segment_tokens": 5_000}
    streamed = StreamedCorpus(**{**vars(corpus), **changes})
    return streamed.loader(32, 4, seed, wait=lambda: None)


def test_windows_are_a_function_of_seed_and_number(corpus, files, tmp_path):
    whole = loader_of(corpus, tmp_path, open_source(files))
    everything, targets = whole.windows(0, 2_000)  # several epochs
    assert np.array_equal(everything[:, 1:], targets[:, :-1])
    assert len(list(tmp_path.glob("segment-*.bin"))) in (2, 3)  # the next one may be on its way
    whole.close()
    for first in (1_900, 40, 777):  # segments that are gone are made again, at any place
        for path in list(tmp_path.glob("segment-*.bin"))[:2]:
            path.write_bytes(b"torn")
        again = loader_of(corpus, tmp_path, open_source(files))
        inputs, _ = again.windows(first, 100)
        again.close()
        assert np.array_equal(inputs, everything[first : first + 100])
    first_half = everything[: whole.windows_per_segment // 2]
    assert len(np.unique(first_half[:, 1:], axis=0)) > 0.9 * len(first_half)


def test_every_process_finds_the_same_windows(files, tmp_path):
    source = open_source(files)
    corpus = prepare_stream(8_000, source, tmp_path, vocab_size=400)
    sample = Corpus.open(tmp_path)
    parts = [corpus, *(StreamedCorpus.of(sample, source, 8_000, rank=rank) for rank in (1, 2))]
    loaders = [part.loader(32, 4, 0, wait=lambda: None) for part in parts]
    first, *others = [loader.windows(50, 200)[0] for loader in loaders]
    assert all(np.array_equal(first, other) for other in others)
    for loader in loaders:
        loader.close()


def test_what_a_folder_of_segments_refuses(corpus, files, tmp_path):
    loader = loader_of(corpus, tmp_path, open_source(files))
    loader.windows(0, 1)
    loader.close()
    with pytest.raises(UserError, match="another text, seed or size"):
        loader_of(corpus, tmp_path, open_source(files), seed=4)
    for path in tmp_path.glob("segment-*.bin"):
        path.unlink()
    other = open_source(files)  # which gives other words under the same name
    parts = other.parts()[1:]
    other.parts = lambda: parts
    with pytest.raises(SourceLost, match="changed since the run began"):
        loader_of(corpus, tmp_path, other).windows(0, 1)
    index = tmp_path / "segments.json"
    index.write_bytes(index.read_bytes().replace(b"sha256", b"sha255"))
    with pytest.raises(UserError, match="damaged"):
        loader_of(corpus, tmp_path, open_source(files))
    with pytest.raises(UserError, match="hold no window"):
        StreamLoader(
            Segments(tmp_path / "new", stream_of(corpus, files), 30, lambda: None), 32, 4, 0
        )


def test_a_source_that_fails_is_told_when_its_text_is_wanted(corpus, files, tmp_path):
    source = open_source(files)
    good = source.parts()

    def broken(at, share):
        yield from itertools.islice(good[0](at, share), 2)
        raise UserError("the network is away")

    source.parts = lambda: [broken, broken]
    loader = loader_of(corpus, tmp_path, source)
    with pytest.raises(SourceLost, match="the network is away"):
        loader.windows(0, 200)
    source.parts = lambda: good  # it is back
    assert len(loader.windows(0, 200)[0]) == 200
    loader.close()
    empty = open_source(files)
    empty.parts = lambda: [lambda at, share: iter(())]
    with pytest.raises(SourceLost, match="too little text"):
        loader_of(corpus, tmp_path / "empty", empty).windows(0, 1)


def test_the_sample_is_the_beginning(files, tmp_path):
    source = sample_of(open_source(files), 20_000)
    found = list(source)
    assert found == list(open_source(files))[: len(found)]
    assert 20_000 <= sum(document.characters for document in found) < 30_000
    corpus = prepare(source, tmp_path, vocab_size=400, prefixes=True)
    assert prepare(source, tmp_path, vocab_size=400, prefixes=True).manifest == corpus.manifest
    with pytest.raises(UserError, match="prepared with sample"):
        prepare(sample_of(open_source(files), 9_999), tmp_path, vocab_size=400)


# Datasets of the Hub, through the package itself


@pytest.fixture
def hub(monkeypatch):
    """Let the Hub have a dataset of 700 rows in 4 shards, in the line form of conversations."""
    datasets = pytest.importorskip("datasets")
    rows = [f"[INST] question {i} [/INST] answer {i}" for i in range(700)]
    rows[300] = "no conversation"
    table = datasets.Dataset.from_dict({"text": rows})

    def load_dataset(path, name=None, *, split, streaming):
        assert streaming
        return table.to_iterable_dataset(num_shards=4)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("i3lm.data.sources._reach", lambda path: None)
    return rows


def test_reading_a_dataset_goes_on_where_it_stood(hub):
    (part,) = open_source("some/body").parts()
    pieces = list(part(None, (0, 1)))
    assert [piece.plain for piece, _ in pieces if piece] == [*hub[:300], *hub[301:]]
    places = [(i, at) for i, (_, at) in enumerate(pieces, 1) if at is not None]
    assert len(places) > 30
    for index, at in places[::9]:
        rest = [piece for piece, _ in part(at, (0, 1))]
        assert [p and p.plain for p in rest] == [p and p.plain for p, _ in pieces[index:]]
        assert [p and p.where for p in rest] == [p and p.where for p, _ in pieces[index:]]
    halves = [[p.plain for p, _ in part(None, (rank, 2)) if p] for rank in range(2)]
    assert sorted(itertools.chain(*halves)) == sorted(set(hub) - {"no conversation"})


def test_a_dataset_streams_in_segments(hub, tmp_path):
    make = lambda: prepare_stream(8_000, open_source("some/body"), tmp_path, vocab_size=400)  # noqa: E731
    whole = make().loader(32, 4, 0, wait=lambda: None)
    inputs, _ = whole.windows(0, 600)
    whole.close()
    for path in tmp_path.glob("segment-*.bin"):
        path.unlink()
    again = make().loader(32, 4, 0, wait=lambda: None)
    assert np.array_equal(again.windows(450, 100)[0], inputs[450:550])
    again.close()


def test_a_hub_out_of_reach_is_asked_once(tmp_path):
    """`load_dataset` alone retries for half a minute, with a line each time."""
    pytest.importorskip("datasets")
    command = [sys.executable, "-m", "i3lm", "train", "--data", "no/folder", "--time", "10s"]
    nowhere = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=nowhere, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("note:")]
    assert line.startswith("error: no/folder: no such file, and no dataset"), line
    assert list(tmp_path.iterdir()) == []


# The whole of it


def test_memory_stays_flat():
    """Of benchmarks/stream.py, whose figures at 10 GB are in docs/scaling.md; 50 MB of text."""
    root = Path(__file__).parents[2]
    code = """import json
from benchmarks import stream
stream.MARKS = (0.01,)
from i3lm.data import streaming
streaming.SAMPLE_CHARACTERS = 1 << 22
print(json.dumps(stream.stream(50_000_000, 1, segment=4_000_000)))"""
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    ).stdout
    early, *_, late = json.loads(out.splitlines()[-1])
    assert late["bytes"] >= 50_000_000 > 3 * early["bytes"]
    assert late["segments_bytes"] <= 3 * 4_000_000
    assert late["resident"] < early["resident"] + 20_000_000
