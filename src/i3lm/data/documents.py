"""What a document is, and how a plain-text file is divided into documents."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from i3lm.data.remote import Place, open_bytes
from i3lm.errors import UserError

Message = dict[str, str]
Division = Literal["auto", "line", "paragraph", "file"]
DIVISIONS: tuple[Division, ...] = ("auto", "line", "paragraph", "file")

# The longest document, in characters: what is longer becomes several documents, so that no
# corpus, whatever its shape, needs more memory than a few of these.
MAX_CHARACTERS = 1 << 22
_BLOCK = 1 << 20
_TAG = re.compile(r"(\[/?INST\])")
_END_OF_TEXT = "<|endoftext|>"
_FORM = "[INST] user [/INST] assistant [INST] user [/INST] assistant"


@dataclass(frozen=True)
class Document:
    """One unit of training text: exactly one of `text` and `messages` is set.

    `text` is plain text, kept to the character; nothing in it is ever a control token.
    `messages` are chat messages as on the Hub (`role`, `content`). `where` names the place the
    document came from, for messages to the user.
    """

    text: str | None
    messages: list[Message] | None
    where: str

    @cached_property
    def plain(self) -> str:
        """The document as plain text; a conversation in its line form."""
        return line_form(self.messages) if self.text is None else self.text  # type: ignore[arg-type]

    @property
    def characters(self) -> int:
        """Code points of `plain`, plus one for the line end (or end of file) that closes it."""
        return len(self.plain) + 1


@dataclass(frozen=True)
class Lines:
    """Whole lines of a file, each a document that has not been looked at yet.

    `raw` is what stands in the file from byte `offset` on. `tagged`: each is a conversation in line
    form. `first` is the number of the first line.
    """

    raw: bytes
    path: Place
    first: int
    tagged: bool
    offset: int = 0

    @property
    def data(self) -> bytes:
        r"""The lines in UTF-8, with `\n` as line ends; UserError where that is not what they are.

        They are looked at here, in the thread that wants them, and not by the one that reads.
        """
        plain = self.raw.isascii() and b"\0" not in self.raw and b"\r" not in self.raw
        return self.raw if plain else self.text.encode()

    @property
    def text(self) -> str:
        """The same as a string."""
        return _decode(self.raw, self.path, self.first, self.offset)

    def documents(self) -> Iterator[Document]:
        """Yield all documents, empty ones too; UserError for a line that is none."""
        for number, line in enumerate(_split(self.text), self.first):
            yield read_line(line, self.tagged, f"{self.path}:{number}")

    def fitting(self) -> Iterator[Document | None]:
        """Yield what `documents` does, but None for a line that is none."""
        for number, line in enumerate(_split(self.text), self.first):
            try:
                yield read_line(line, self.tagged, f"{self.path}:{number}")
            except UserError:
                yield None


def read_line(line: str, tagged: bool, where: str) -> Document:
    """Return the document that a line is; UserError where it should be a conversation."""
    if not tagged:
        return Document(line, None, where)
    return read_conversation(line, where) if line.strip() else Document("", None, where)


def line_form(messages: list[Message]) -> str:
    """Return `[INST] user [/INST] assistant [INST] ...`, each content stripped.

    A system message stands in front of the first user message, a blank line between.
    """
    parts, system = [], ""
    for message in messages:
        content = message["content"].strip()
        if message["role"] == "system":
            system = f"{content}\n\n" if content else ""
        elif message["role"] == "user":
            parts.append(f"[INST] {system}{content}")
            system = ""
        else:
            parts.append(f"[/INST] {content}")
    return " ".join(parts)


def parse_conversation(line: str) -> list[Message] | None:
    """Return the messages of a line `[INST] user [/INST] assistant [INST] ...`, else None.

    Strict: the line starts with `[INST]`, the two tags alternate, no turn is empty, and the last
    turn is the assistant's. White space around a turn is dropped.
    """
    start, *parts = _TAG.split(line)
    if start or len(parts) < 4 or len(parts) % 4:
        return None
    turns = [content.strip() for content in parts[1::2]]
    if not all(turns) or set(parts[0::4]) != {"[INST]"} or set(parts[2::4]) != {"[/INST]"}:
        return None
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(turns)]


def _fault(line: str) -> str:
    """Say in what a line is no conversation."""
    start, *parts = _TAG.split(line)
    tags, turns = parts[0::2], parts[1::2]
    if not tags or start:
        return "it does not begin with [INST]"
    for number, tag in enumerate(tags):
        expected = ("[INST]", "[/INST]")[number % 2]
        if tag != expected:
            return f"tag {number + 1} is {tag}, where {expected} should stand"
    empty = next((number for number, turn in enumerate(turns, 1) if not turn.strip()), None)
    if empty:
        return f"turn {empty} is empty"
    return "the last turn is the user's: a reply, after [/INST], is missing"


def read_conversation(line: str, where: str) -> Document:
    """Return the conversation in `line`; UserError names `where` if it is none."""
    messages = parse_conversation(line)
    if messages is None:
        raise UserError(
            f"{where}: not a conversation of the form {_FORM}, as the first one here is: "
            f"{_fault(line)}; mend the line, leave such lines out with --skip-bad-lines, or read "
            "the tags as plain text with --documents line"
        )
    return Document(None, messages, where)


def check_messages(value: Any, where: str) -> list[Message]:
    """Return `value` as chat messages: an optional system message, then user and assistant in turn.

    The last message is the assistant's, no user or assistant content is empty; keys other than
    `role` and `content` are dropped. Anything else is a UserError that names `where`.
    """

    def refuse(what: str) -> UserError:
        return UserError(
            f"{where}: {what}; messages are an optional system message, then user and assistant "
            'in turn, assistant last, each {"role": ..., "content": text}'
        )

    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise refuse("messages are not a list of objects")
    messages: list[Message] = []
    expected = "user"
    for number, item in enumerate(value, 1):
        role, content = item.get("role"), item.get("content")
        if not isinstance(content, str):
            raise refuse(f"message {number} has no text in `content`")
        if role != expected and (role != "system" or number > 1):
            raise refuse(f"message {number} has role {role!r} instead of {expected!r}")
        if role != "system":
            if not content.strip():
                raise refuse(f"message {number} is empty")
            expected = "assistant" if role == "user" else "user"
        messages.append({"role": role, "content": content})
    if not messages or messages[-1]["role"] != "assistant":
        raise refuse("the last message is not the assistant's")
    return messages


def read_text_file(
    path: Place, division: Division = "auto", advance: Callable[[int], None] = lambda n: None
) -> Iterator[Document]:
    r"""Yield the documents of a UTF-8 text file, in order, in constant memory.

    How the file is divided:

    - `line`: every line is a document, without its line end.
    - `paragraph`: the blocks of lines between blank lines.
    - `file`: the whole file is one document.
    - `auto` looks at the first MiB and takes the first that fits:
      1. the first line that is not blank starts with `[INST]`: a conversation a line,
         `[INST] user [/INST] assistant [INST] ...`; a line that is none is an error;
      2. a line is `<|endoftext|>`: the texts between such lines;
      3. a blank line stands between others, as in prose or code: `file`;
      4. else `line`, as for a story or a paragraph a line.

    A blank line holds nothing but white space. Only `auto` reads tags as turns; elsewhere they are
    plain text. `\r\n` is read as `\n`, a byte order mark is dropped, all other characters are
    kept. A document longer than 4,194,304 characters becomes several, divided at line ends
    where there are any. Empty documents are yielded too. `advance` is told the bytes read.

    UserError, with line and byte offset, where the file is not UTF-8 or holds a NUL character.
    """
    for piece in read_pieces(path, division, advance):
        if isinstance(piece, Lines):
            yield from piece.documents()
        else:
            yield piece


def read_pieces(
    path: Place, division: Division = "auto", advance: Callable[[int], None] = lambda n: None
) -> Iterator[Document | Lines]:
    """Yield what `read_text_file` does, but `Lines` where a line is a document."""
    if division not in DIVISIONS:
        raise UserError(f"unknown division {division!r}; take one of {', '.join(DIVISIONS)}")
    how = _look(path) if division == "auto" else division
    if how == "file":
        yield from _whole(path, advance)
    elif how in ("paragraph", "endoftext"):
        yield from _pieces(path, how == "endoftext", advance)
    else:
        for number, offset, raw in _raw_blocks(path, advance):
            yield Lines(raw, path, number, how == "conversation", offset)


def cut(text: str) -> Iterator[str]:
    """Yield `text` in parts of at most MAX_CHARACTERS, each but the last up to a line end or a
    space where its second half has one; together they are `text`."""
    start = 0
    while len(text) - start > MAX_CHARACTERS:
        end, half = start + MAX_CHARACTERS, start + MAX_CHARACTERS // 2
        at = text.rfind("\n", half, end)
        at = text.rfind(" ", half, end) if at < 0 else at
        end = end if at < 0 else at + 1
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def _look(path: Place) -> str:
    with open_bytes(path) as file:
        head = file.read(_BLOCK).removeprefix(b"\xef\xbb\xbf").decode("utf-8", "ignore")
    lines = head.replace("\r\n", "\n").split("\n")
    if next((line for line in lines if line.strip()), "").startswith("[INST]"):
        return "conversation"
    stripped = [line.strip() for line in lines]
    if _END_OF_TEXT in stripped:
        return "endoftext"
    return "file" if "\n\n" in "\n".join(stripped).strip("\n") else "line"


def _whole(path: Place, advance: Callable[[int], None]) -> Iterator[Document]:
    number, first, size, blocks = 1, 1, 0, list[str]()
    for number, block in _blocks(path, advance):
        if blocks and size + len(block) > MAX_CHARACTERS:
            yield Document("".join(blocks), None, f"{path}:{first}")
            first, size, blocks = number, 0, []
        blocks.append(block)
        size += len(block)
    yield Document("".join(blocks), None, f"{path}:{first}")


def _pieces(path: Place, marked: bool, advance: Callable[[int], None]) -> Iterator[Document]:
    """Yield what stands between blank lines or, where `marked`, between `<|endoftext|>` lines."""
    first, size, held = 1, 0, list[str]()
    for number, line in _lines(path, advance):
        ends = line.strip() == (_END_OF_TEXT if marked else "")
        if held and (ends or size + len(line) >= MAX_CHARACTERS):
            yield Document("\n".join(held).strip("\n"), None, f"{path}:{first}")
            size, held = 0, []
        if not ends:
            first = first if held else number
            held.append(line)
            size += len(line) + 1
    if held:
        yield Document("\n".join(held).strip("\n"), None, f"{path}:{first}")


def _lines(path: Place, advance: Callable[[int], None]) -> Iterator[tuple[int, str]]:
    for number, block in _blocks(path, advance):
        yield from enumerate(_split(block), number)


def _split(block: str) -> list[str]:
    lines = block.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


def _blocks(path: Place, advance: Callable[[int], None]) -> Iterator[tuple[int, str]]:
    """Yield (number of its first line, text) of the blocks of a file."""
    for number, offset, raw in _raw_blocks(path, advance):
        yield number, _decode(raw, path, number, offset)


def _raw_blocks(path: Place, advance: Callable[[int], None]) -> Iterator[tuple[int, int, bytes]]:
    """Yield (number of its first line, where it begins, bytes) of blocks that end at line ends.

    A line of more than MAX_CHARACTERS bytes is cut between two characters.
    """
    number, offset, held = 1, 0, b""
    with open_bytes(path) as file:
        while (fresh := file.read(_BLOCK)) or held:
            if end := fresh.rfind(b"\n") + 1:
                raw, held = b"".join((held, memoryview(fresh)[:end])), fresh[end:]
            else:
                held += fresh
                if fresh and len(held) < MAX_CHARACTERS:
                    continue
                end = _boundary(held) if fresh else len(held)
                raw, held = held[:end], held[end:]
            yield number, offset, raw
            number += count_lines(raw)
            offset += len(raw)
            advance(len(raw))


def count_lines(data: bytes) -> int:
    """Return the number of line ends, ten times as fast as `bytes.count` where lines are short."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))


def _boundary(data: bytes) -> int:
    """Return where `data` may be cut: not inside a character, nor inside a CR LF."""
    end = len(data)
    lead = next((i for i in range(end - 1, max(end - 5, -1), -1) if data[i] & 0xC0 != 0x80), None)
    if lead is not None and (data[lead] >= 0xC0 or data[lead] == 13):
        end = lead
    return end


def _decode(raw: bytes, path: Place, number: int, offset: int) -> str:
    try:
        text, at = raw.decode("utf-8"), raw.find(b"\0")
    except UnicodeDecodeError as error:
        text, at = "", error.start
        nul = raw.find(b"\0", 0, at)
        at = at if nul < 0 else nul
    if at >= 0:
        what = "a NUL character" if raw[at] == 0 else f"0x{raw[at]:02X}, which is not UTF-8"
        line = number + raw.count(b"\n", 0, at)
        raise UserError(
            f"{path}: line {line}, byte {offset + at} is {what}; "
            "give UTF-8 text (iconv -f OLD -t UTF-8 converts) or leave the file out"
        )
    if offset == 0:
        text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n") if "\r" in text else text
