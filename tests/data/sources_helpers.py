"""Files of text and rows to read, and a conversation to put into them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from i3lm.data.sources import open_source

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


def jsonl(path: Path, *rows) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def parquet(path: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path
