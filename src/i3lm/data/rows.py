"""Rows of JSON lines, Parquet and datasets of the Hub, and the documents in them."""

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from i3lm.data.documents import (
    Division,
    Document,
    check_messages,
    cut,
    read_conversation,
)
from i3lm.data.remote import Place, open_bytes
from i3lm.errors import UserError

_LONGEST_ROW = 1 << 26  # bytes of one JSON line

Advance = Callable[[int], None]
Row = tuple[Mapping[str, Any], str]
Form = dict[str, bool]  # `tagged`: every string is a conversation in line form


def column_of(names: Sequence[str], text_column: str | None, where: str) -> str:
    """Return the column that holds the text; UserError lists them where there is none."""
    for name in (text_column,) if text_column else ("messages", "text"):
        if name in names:
            return name
    wanted = f"no column {text_column!r}" if text_column else "no column `messages` or `text`"
    raise UserError(
        f"{where}: {wanted}; the columns are {', '.join(names) or 'none'}: "
        "name one with --text-column"
    )


def documents_of(
    rows: Iterator[Row | None],
    documents: Division,
    text_column: str | None,
    strict: bool = True,
    form: Form | None = None,
) -> Iterator[Document | None]:
    """Yield the documents of `rows`; None for a conversation that does not fit, unless `strict`.

    What the first string said is kept in `form`, for a later call on the rows that follow.
    """
    form = {} if form is None else form
    if documents != "auto":
        form["tagged"] = False
    for found in rows:
        if found is None:
            yield None
            continue
        row, where = found
        value = row[column_of(list(row), text_column, where)]
        if value is None or (isinstance(value, str) and not value.strip()):
            yield Document("", None, where)
        elif isinstance(value, str):
            _check_unicode(value, where)
            if not form.setdefault("tagged", value.startswith("[INST]")):
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


def json_rows(path: Place, advance: Advance, skip_bad: bool = False) -> Iterator[Row | None]:
    """Yield the objects of a file's lines; None for a line that is none, with `skip_bad`."""
    with open_bytes(path) as file:
        end = 0  # bytes read; some streams cannot tell
        for number in itertools.count(1):
            raw = file.readline(_LONGEST_ROW)
            if not raw:
                return
            end += len(raw)
            where = f"{path}:{number}"
            advance(len(raw))
            if len(raw) == _LONGEST_ROW:
                raise UserError(f"{where}: a line of more than 64 MiB; divide it into rows")
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            try:
                row = _json_row(raw, where, end - len(raw))
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


def parquet_rows(path: Place, text_column: str | None, advance: Advance) -> Iterator[Row]:
    """Yield the rows of a Parquet file, their text column alone."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f'{path}: reading Parquet needs pyarrow; pip install "i3lm[parquet]"'
        ) from error
    try:
        with open_bytes(path) as file, pyarrow.parquet.ParquetFile(file) as table:
            size = file.seek(0, os.SEEK_END)
            column = column_of(table.schema_arrow.names, text_column, str(path))
            number = 0
            groups = table.metadata.num_row_groups
            for group in range(groups):
                for batch in table.iter_batches(256, row_groups=[group], columns=[column]):
                    for value in batch.column(0).to_pylist():
                        number += 1
                        yield {column: value}, f"{path}, row {number}"
                advance(size // groups)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: not a readable Parquet file ({reason}); replace it") from error
