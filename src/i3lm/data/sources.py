"""Where documents come from: files, folders, URLs, a `datasets` name, built-in conversations."""

import glob
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from i3lm.data.documents import (
    Division,
    Document,
    Lines,
    read_pieces,
)
from i3lm.data.remote import (
    COMPRESSIONS,
    Place,
    compression_of,
    expand,
    is_remote,
    suffix_of,
    total_bytes,
)
from i3lm.data.rows import Advance, Form, Row, documents_of, json_rows, parquet_rows
from i3lm.errors import UserError

SUFFIXES = (".txt", ".jsonl", ".parquet")  # what a folder is searched for
_STATE_ROWS = 16  # of a dataset of the Hub between two places that reading can go on from
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")

Spec = str | Path
Piece = Document | Lines | None  # None: unfit
At = Any  # a place in a part, as JSON has it; None: its start
# Reads a part of a source on from a place: pieces, each with the place after it, or None where one
# cannot begin there. (rank, ranks) asks for a share of a part that divides itself, else is unused.
Part = Callable[[At, tuple[int, int]], Iterator[tuple[Piece, At]]]


class Source:
    """A stream of documents that can be read again from the start.

    `description` is one line for people, `identity` the settings that (with the contents of
    `files`) determine the documents. While it is read, `progress` goes from 0 to 1 where
    the size is known, and `skipped` counts what gave no document: `empty` ones and, in a
    dataset from the Hub, `unfit` conversations.
    """

    def __init__(
        self,
        description: str,
        identity: dict[str, Any],
        read: Callable[[Advance], Iterator[Piece]],
        files: Sequence[Path] = (),
        size: int | Callable[[], int] = 0,
        parts: Callable[[], Sequence[Part]] | None = None,
        divides: bool = False,
    ) -> None:
        self.description = description
        self.identity = identity
        self.files = tuple(files)
        self.progress = 0.0
        self.skipped = {"empty": 0, "unfit": 0}
        self._read = read
        self._size = size
        self._parts = parts
        self.divides = divides  # a part gives a rank no more than its share

    def parts(self) -> Sequence[Part]:
        """Return the parts, of which each can be read on from a place within it."""
        return self._parts() if self._parts else [counted(lambda: self._read(lambda step: None))]

    def __iter__(self) -> Iterator[Document]:
        for piece in self.pieces():
            if isinstance(piece, Lines):
                yield from filter(self._is_full, piece.documents())
            else:
                yield piece

    def pieces(self) -> Iterator[Document | Lines]:
        """Yield the documents; `Lines` as a whole, among which may be empty ones, not counted."""
        done = 0
        self.progress = 0.0
        self.skipped = {"empty": 0, "unfit": 0}
        size = self._size() if callable(self._size) else self._size

        def advance(step: int) -> None:
            nonlocal done
            done += step
            self.progress = min(1.0, done / size) if size else 0.0

        for piece in self._read(advance):
            if self.fits(piece):
                yield piece

    def fits(self, piece: Piece) -> TypeGuard[Document | Lines]:
        """Say whether a piece may hold text, and count it in `skipped` where it does not."""
        if piece is None:
            self.skipped["unfit"] += 1
            return False
        return isinstance(piece, Lines) or self._is_full(piece)

    def _is_full(self, document: Document) -> bool:
        empty = document.text is not None and not document.text.strip()
        self.skipped["empty"] += empty
        return not empty


def counted(read: Callable[[], Iterator[Piece]]) -> Part:
    """Return a part whose places are numbers of pieces, those before it being read and dropped."""

    def part(at: At, share: tuple[int, int]) -> Iterator[tuple[Piece, At]]:
        for number, piece in enumerate(read(), 1):
            if number > (at or 0):
                yield piece, number

    return part


def open_source(
    spec: Spec | Sequence[Spec] | None = None,
    *,
    documents: Division = "auto",
    text_column: str | None = None,
    split: str = "train",
    seed: int = 0,
    size: int = 50_000,
    skip_bad: bool = False,
) -> Source:
    """Return the documents that `spec` names.

    - None: `size` embedded conversations, drawn with `seed`.
    - A file: `.jsonl` (or `.json` with an object a line) and `.parquet` by their columns, anything
      else as UTF-8 text, divided as `read_text_file` says (`documents` is its `division`).
    - A folder: its `.txt`, `.jsonl` and `.parquet` files at any depth, sorted by path, hidden ones
      left out. Text and rows may be compressed (`.gz`, `.bz2`, `.xz`, `.zst` after the suffix).
    - A URL that fsspec knows (`https://`, `s3://`, `hf://`, ...): a file, read as a stream each
      time; with `*` the files that match; with `/` at its end a folder.
    - A pattern with `*`, `?` or `[...]`; `**` stands for folders at any depth.
    - `owner/name` or `owner/name:configuration`, where no such file exists: `split` of that dataset
      on the Hub, read as a stream through the `datasets` package, from the network each time.
    - A sequence of these except the last, in that order; a file that comes up twice is read once.

    Rows: the column `text_column`, else `messages`, else `text`. A list there is chat messages, a
    string is a document; where the first string of a file starts with `[INST]`, every string is a
    conversation in line form (unless `documents` is not `auto`). Conversations that do
    not fit the form are errors in a file; in a dataset of the Hub, which the
    user cannot mend, and with `skip_bad`, they are skipped and counted, as are with `skip_bad`
    lines of a `.jsonl` file that are no JSON object.

    UserError names the file and line, and the fix.
    """
    if spec is None:
        return _embedded(size, seed)
    specs = [spec] if isinstance(spec, str | Path) else list(spec)
    if "" in specs:  # a shell's unset variable, which would mean the current folder
        raise UserError("a name in --data is empty; give a file, a folder or a dataset name")
    if len(specs) == 1 and is_hub_name(specs[0]):
        return _hub(str(specs[0]), split, documents, text_column)
    named = [str(spec) if is_remote(spec) else _find(spec) for spec in specs]
    local = list(dict.fromkeys(itertools.chain(*(n for n in named if not isinstance(n, str)))))
    if not named:
        raise UserError("no data named; give a file, a folder or a dataset name")

    def places() -> list[Place]:  # asks other machines: when they are read, not before
        found: list[Place] = []
        for name in named:
            found += expand(name, SUFFIXES) if isinstance(name, str) else name
        return list(dict.fromkeys(found))

    local_bytes = sum(path.stat().st_size for path in local)

    def total() -> int:  # unpacked, which nobody knows of a compressed file
        remotes = [place for place in places() if not isinstance(place, Path)]
        theirs = total_bytes(remotes)
        known = bool(theirs or not remotes) and not any(map(compression_of, places()))
        return theirs + local_bytes if known else 0

    def read_one(place: Place, advance: Advance) -> Iterator[Piece]:
        return _read_file(place, documents, text_column, advance, skip_bad)

    def parts() -> list[Part]:
        return [counted(partial(read_one, place, lambda step: None)) for place in places()]

    def read(advance: Advance) -> Iterator[Piece]:
        for place in places():
            yield from read_one(place, advance)

    shown = ", ".join(map(str, specs[:3])) + (", ..." if len(specs) > 3 else "")
    urls = [name for name in named if isinstance(name, str)]
    alone = bool(urls) or local == [Path(specs[0])]
    description = shown if alone else f"{shown} ({len(local):,} files)"
    identity: dict[str, Any] = {"documents": documents, "text_column": text_column}
    if skip_bad:
        identity["skip_bad"] = True
    if urls:
        identity["remote"] = urls
    return Source(description, identity, read, local, total, parts)


def _find(spec: Spec) -> list[Path]:
    path = Path(spec)
    if path.is_dir():
        inside = [
            file
            for file in path.rglob("*")
            if suffix_of(file) in SUFFIXES
            and file.is_file()
            and not any(part[0] == "." for part in file.relative_to(path).parts)
        ]
        if not inside:
            raise UserError(f"{path}: no {', '.join(SUFFIXES)} file in this folder; name another")
        return sorted(inside)
    if path.exists():
        if not path.is_file():
            raise UserError(f"{spec}: no plain file, and text is read twice; save it as a file")
        return [path]
    if str(spec) == "-":
        raise UserError("--data -: text is read twice, and a pipe only once; save it as a file")
    if glob.has_magic(str(spec)):
        matches = sorted(glob.glob(str(spec), recursive=True))
        files = [Path(match) for match in matches if os.path.isfile(match)]
        if not files:
            raise UserError(f"{spec}: no file matches this pattern; check the path")
        return files
    if is_hub_name(spec):
        raise UserError(f"{spec}: no such file; a dataset of the Hub must be the only source")
    raise UserError(
        f"{spec}: no such file or folder; check the path (a dataset of the Hub is named owner/name)"
    )


def _read_file(
    path: Place, documents: Division, text_column: str | None, advance: Advance, skip_bad: bool
) -> Iterator[Piece]:
    suffix = suffix_of(path)
    try:
        if suffix in (".jsonl", ".json"):
            rows = json_rows(path, advance, skip_bad)
            yield from documents_of(rows, documents, text_column, not skip_bad)
        elif suffix == ".parquet":
            rows = parquet_rows(path, text_column, advance)
            yield from documents_of(rows, documents, text_column, not skip_bad)
        else:
            for piece in read_pieces(path, documents, advance):
                if skip_bad and isinstance(piece, Lines) and piece.tagged:
                    yield from piece.fitting()
                else:
                    yield piece
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())  # pyarrow gives no strerror
        raise UserError(f"{path}: cannot be read ({reason}); check the file") from error


def is_hub_name(spec: Spec) -> bool:
    """Say whether `spec` can only be a dataset of the Hub."""
    return (
        isinstance(spec, str)
        and _HUB_NAME.fullmatch(spec) is not None
        and spec[0] not in "./~"
        and not spec.lower().endswith((*SUFFIXES, ".json", *COMPRESSIONS))
        and not os.path.exists(spec)
    )


def _reach(path: str) -> None:
    """Ask the Hub once about a dataset. `load_dataset` tries six times, half a minute with a line
    for each, before it says that there is no network; a mistyped path should not cost that."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    with suppress(OfflineModeIsEnabled):  # what `datasets` keeps on the disk may do
        HfApi().dataset_info(path, timeout=10)


def _hub(name: str, split: str, documents: Division, text_column: str | None) -> Source:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{name}: no such file; to load the dataset of that name from the Hub: "
            'pip install "i3lm[hub]"'
        ) from error
    path, _, configuration = name.partition(":")
    label = f"{name}[{split}]"

    def load() -> Any:
        return datasets.load_dataset(path, configuration or None, split=split, streaming=True)

    def rows(begin: Callable[[], Iterable[Any]], number: int = 0) -> Iterator[Row]:
        first = number
        try:
            if first == 0:
                _reach(path)
            for row in begin():
                number += 1
                yield row, f"{label}, row {number}"
        except Exception as error:  # DatasetNotFoundError, and what each of its backends raises
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            if number > first:
                raise UserError(
                    f"{label}: reading ended after row {number:,} ({reason}); check the network"
                ) from error
            raise UserError(
                f"{name}: no such file, and no dataset that can be read from the Hub "
                f"({reason}); check the name, --split and the network"
            ) from error

    def read(advance: Advance) -> Iterator[Document | None]:
        return documents_of(rows(load), documents, text_column, strict=False)

    def part(at: At, share: tuple[int, int]) -> Iterator[tuple[Piece, At]]:
        rank, ranks = share
        form: Form = dict(at["form"]) if at else {}
        place: At = None  # of the rows before the one that is read
        table: Any = None

        def begin() -> Iterable[Any]:
            nonlocal table
            table = load()
            if ranks > 1:
                from datasets.distributed import split_dataset_by_node

                table = split_dataset_by_node(table, rank, ranks)
            if at:
                table.load_state_dict(at["state"])
            return table

        def marked() -> Iterator[Row]:
            nonlocal place
            first = at["row"] if at else 0
            for number, pair in enumerate(rows(begin, first), first + 1):
                state = table.state_dict() if number % _STATE_ROWS == 0 else None
                yield pair
                place = {"row": number, "state": state, "form": form} if state else None

        held: list[Piece] = []  # the newest piece, until it is known whether its row is over
        for piece in documents_of(marked(), documents, text_column, strict=False, form=form):
            if held:
                yield held.pop(), place
            place = None
            held.append(piece)
        if held:
            yield held.pop(), None

    choices = {"split": split, "documents": documents, "text_column": text_column}
    identity = {"dataset": name, **choices}
    return Source(label, identity, read, parts=lambda: [part], divides=True)


def _embedded(size: int, seed: int) -> Source:
    if size < 2:
        raise UserError(f"{size} embedded conversations are too few; ask for 2 or more")
    from i3lm.data.conversations import generate

    def read(advance: Advance) -> Iterator[Document]:
        for number, messages in enumerate(generate(size, seed), 1):
            advance(1)
            yield Document(None, messages, f"embedded conversation {number}")

    # Another version of the generator is another corpus: its first words tell.
    sample = json.dumps(list(itertools.islice(generate(64, seed), 64)))
    identity = {
        "embedded": size,
        "seed": seed,
        "sample": hashlib.sha256(sample.encode()).hexdigest(),
    }
    return Source(f"{size:,} embedded conversations (seed {seed})", identity, read, size=size)
