"""Where documents come from: files, folders, a `datasets` name, or the embedded conversations."""

import glob
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from i3lm.data.documents import (
    Division,
    Document,
    Lines,
    check_messages,
    cut,
    read_conversation,
    read_pieces,
)
from i3lm.errors import UserError

SUFFIXES = (".txt", ".jsonl", ".parquet")  # what a folder is searched for
_LONGEST_ROW = 1 << 26  # bytes of one JSON line
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")

Spec = str | Path
Advance = Callable[[int], None]
Piece = Document | Lines | None  # None: unfit
Row = tuple[Mapping[str, Any], str]


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
        size: int = 0,
    ) -> None:
        self.description = description
        self.identity = identity
        self.files = tuple(files)
        self.progress = 0.0
        self.skipped = {"empty": 0, "unfit": 0}
        self._read = read
        self._size = size

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

        def advance(step: int) -> None:
            nonlocal done
            done += step
            self.progress = min(1.0, done / self._size) if self._size else 0.0

        for piece in self._read(advance):
            if piece is None:
                self.skipped["unfit"] += 1
            elif isinstance(piece, Lines) or self._is_full(piece):
                yield piece

    def _is_full(self, document: Document) -> bool:
        empty = document.text is not None and not document.text.strip()
        self.skipped["empty"] += empty
        return not empty


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
      left out.
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
    if len(specs) == 1 and _is_hub_name(specs[0]):
        return _hub(str(specs[0]), split, documents, text_column)
    files = list(dict.fromkeys(itertools.chain.from_iterable(map(_find, specs))))
    if not files:
        raise UserError("no data named; give a file, a folder or a dataset name")
    sizes = sum(path.stat().st_size for path in files)

    def read(advance: Advance) -> Iterator[Piece]:
        for path in files:
            yield from _read_file(path, documents, text_column, advance, skip_bad)

    shown = ", ".join(map(str, specs[:3])) + (", ..." if len(specs) > 3 else "")
    description = shown if files == [Path(specs[0])] else f"{shown} ({len(files):,} files)"
    identity: dict[str, Any] = {"documents": documents, "text_column": text_column}
    if skip_bad:
        identity["skip_bad"] = True
    return Source(description, identity, read, files, sizes)


def _find(spec: Spec) -> list[Path]:
    path = Path(spec)
    if path.is_dir():
        inside = [
            file
            for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES
            and file.is_file()
            and not any(part[0] == "." for part in file.relative_to(path).parts)
        ]
        if not inside:
            raise UserError(f"{path}: no {', '.join(SUFFIXES)} file in this folder; name another")
        return sorted(inside)
    if path.exists():
        return [path]
    if glob.has_magic(str(spec)):
        matches = sorted(glob.glob(str(spec), recursive=True))
        files = [Path(match) for match in matches if os.path.isfile(match)]
        if not files:
            raise UserError(f"{spec}: no file matches this pattern; check the path")
        return files
    if _is_hub_name(spec):
        raise UserError(f"{spec}: no such file; a dataset of the Hub must be the only source")
    raise UserError(
        f"{spec}: no such file or folder; check the path (a dataset of the Hub is named owner/name)"
    )


def _read_file(
    path: Path, documents: Division, text_column: str | None, advance: Advance, skip_bad: bool
) -> Iterator[Piece]:
    suffix = path.suffix.lower()
    try:
        if suffix in (".jsonl", ".json"):
            rows = _json_rows(path, advance, skip_bad)
            yield from _documents(rows, documents, text_column, not skip_bad)
        elif suffix == ".parquet":
            rows = _parquet_rows(path, text_column, advance)
            yield from _documents(rows, documents, text_column, not skip_bad)
        else:
            for piece in read_pieces(path, documents, advance):
                if skip_bad and isinstance(piece, Lines) and piece.tagged:
                    yield from piece.fitting()
                else:
                    yield piece
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())  # pyarrow gives no strerror
        raise UserError(f"{path}: cannot be read ({reason}); check the file") from error


def _column(names: Sequence[str], text_column: str | None, where: str) -> str:
    for name in (text_column,) if text_column else ("messages", "text"):
        if name in names:
            return name
    wanted = f"no column {text_column!r}" if text_column else "no column `messages` or `text`"
    raise UserError(
        f"{where}: {wanted}; the columns are {', '.join(names) or 'none'}: "
        "name one with --text-column"
    )


def _documents(
    rows: Iterator[Row | None], documents: Division, text_column: str | None, strict: bool = True
) -> Iterator[Document | None]:
    """Yield the documents of `rows`; None for a conversation that does not fit, unless `strict`."""
    tagged: bool | None = False if documents != "auto" else None
    for found in rows:
        if found is None:
            yield None
            continue
        row, where = found
        value = row[_column(list(row), text_column, where)]
        if value is None or (isinstance(value, str) and not value.strip()):
            yield Document("", None, where)
        elif isinstance(value, str):
            _check_unicode(value, where)
            if tagged is None:
                tagged = value.startswith("[INST]")
            if not tagged:
                yield from (Document(part, None, where) for part in cut(value))
            else:
                yield _fit(read_conversation, value, where, strict)
        elif isinstance(value, list):
            document = _fit(_chat, value, where, strict)
            if document is not None:
                _check_unicode(document.plain, where)
            yield document
        else:
            raise UserError(
                f"{where}: the column holds neither text nor messages but a "
                f"{type(value).__name__}; name another with --text-column"
            )


def _chat(value: Any, where: str) -> Document:
    return Document(None, check_messages(value, where), where)


def _fit(
    build: Callable[[Any, str], Document], value: Any, where: str, strict: bool
) -> Document | None:
    try:
        return build(value, where)
    except UserError:
        if strict:
            raise
        return None


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: half of a surrogate pair (\\ud8..), which is no text; mend it"
        ) from error


def _json_rows(path: Path, advance: Advance, skip_bad: bool) -> Iterator[Row | None]:
    """Yield the objects of a file's lines; None for a line that is none, with `skip_bad`."""
    with open(path, "rb") as file:
        for number in itertools.count(1):
            raw = file.readline(_LONGEST_ROW)
            if not raw:
                return
            where = f"{path}:{number}"
            advance(len(raw))
            if len(raw) == _LONGEST_ROW:
                raise UserError(f"{where}: a line of more than 64 MiB; divide it into rows")
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            try:
                row = _json_row(raw, where, file.tell() - len(raw))
            except UserError:
                if not skip_bad:
                    raise
                yield None
                continue
            yield row, where


def _json_row(raw: bytes, where: str, offset: int) -> dict[str, Any]:
    """Return the object in a line that begins at byte `offset` of its file."""
    mend = "mend the line, or leave such lines out with --skip-bad-lines"
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        at = f"byte {offset + error.start}"
        raise UserError(f"{where}: {at} is not UTF-8; convert the file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: not valid JSON ({error}); every line must be one object: {mend}"
        ) from error
    if not isinstance(row, dict):
        raise UserError(
            f"{where}: a JSON {type(row).__name__}, not an object; every line must be one "
            "object (jq -c '.[]' turns an array into lines)"
        )
    return row


def _parquet_rows(path: Path, text_column: str | None, advance: Advance) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f'{path}: reading Parquet needs pyarrow; pip install "i3lm[parquet]"'
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            column = _column(table.schema_arrow.names, text_column, str(path))
            number = 0
            groups = table.metadata.num_row_groups
            for group in range(groups):
                for batch in table.iter_batches(256, row_groups=[group], columns=[column]):
                    for value in batch.column(0).to_pylist():
                        number += 1
                        yield {column: value}, f"{path}, row {number}"
                advance(path.stat().st_size // groups)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: not a readable Parquet file ({reason}); replace it") from error


def _is_hub_name(spec: Spec) -> bool:
    return (
        isinstance(spec, str)
        and _HUB_NAME.fullmatch(spec) is not None
        and spec[0] not in "./~"
        and not spec.lower().endswith((*SUFFIXES, ".json"))
        and not os.path.exists(spec)
    )


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

    def rows(advance: Advance) -> Iterator[Row]:
        try:
            table = datasets.load_dataset(path, configuration or None, split=split, streaming=True)
            for number, row in enumerate(table, 1):
                yield row, f"{label}, row {number}"
        except (
            OSError,
            ValueError,
        ) as error:  # what datasets raises, DatasetNotFoundError included
            reason = " ".join(str(error).split())
            raise UserError(
                f"{name}: no such file, and no dataset that can be read from the Hub "
                f"({type(error).__name__}: {reason}); check the name, --split and the network"
            ) from error

    def read(advance: Advance) -> Iterator[Document | None]:
        return _documents(rows(advance), documents, text_column, strict=False)

    choices = {"split": split, "documents": documents, "text_column": text_column}
    identity = {"dataset": name, **choices}
    return Source(label, identity, read)


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
