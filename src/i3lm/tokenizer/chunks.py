"""The tokenizer object: text and conversations to ids, and back."""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from i3lm.errors import UserError
from i3lm.tokenizer import conversation, files, rule
from i3lm.tokenizer.kernel import Encoder, LineTable, library, utf8

Messages = Sequence[Mapping[str, Any]]


class ChunkTokenizer:
    """Encodes text by the rule of `tokenizer/rule.py`; ids are uint16.

    `tokens` are all tokens in id order, as `VocabularyCounter.build` gives them: special tokens,
    256 byte tokens, then different chunks of 1 to 3 characters. ValueError where they are not.
    `fingerprint` is the SHA-256 (hexadecimal) of tokens and settings.
    """

    def __init__(self, tokens: Sequence[str], lowercase: bool = False) -> None:
        self.tokens = list(tokens)
        self.lowercase = lowercase
        first = [*rule.SPECIAL_TOKENS, *rule.BYTE_TOKENS]
        chunks = self.tokens[rule.FIRST_CHUNK :]
        if self.tokens[: rule.FIRST_CHUNK] != first or len(self.tokens) > 1 << 16:
            raise ValueError(
                "tokens must be the special ones, 256 bytes, and at most 65,536 in all"
            )
        if len(set(chunks)) < len(chunks) or not all(1 <= len(chunk) <= 3 for chunk in chunks):
            raise ValueError("chunks must be different and have 1 to 3 characters")
        if any("\ud800" <= character <= "\udfff" for character in set().union(*chunks)):
            raise ValueError("chunks must not hold lone surrogates")
        settings = json.dumps([self.tokens, lowercase])
        self.fingerprint = hashlib.sha256(settings.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getstate__(self) -> dict[str, Any]:
        # Compiled tables belong to one process; they are made again on first use.
        return {name: value for name, value in self.__dict__.items() if name != "_encoder"}

    def encode(self, text: str) -> np.ndarray:
        """Return uint16 (N,), the ids of a plain text, by the rule alone: no special tokens.

        UserError where the text holds a lone surrogate.
        """
        data = self._prepare(text)
        if self._encoder is not None:
            return self._encoder.encode(data)
        return np.array(rule.encode(data.decode(), self._vocabulary), np.uint16)

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of many texts, uint16 (N,), and where each one's ids end, int64.

        Each text is encoded by itself, as by `encode`.
        """
        parts = [self._prepare(text) for text in texts]
        if self._encoder is not None:
            return self._encoder.encode_batch(parts)
        ids = [rule.encode(part.decode(), self._vocabulary) for part in parts]
        ends = np.cumsum([len(part) for part in ids], dtype=np.int64)
        return np.array([number for part in ids for number in part], np.uint16), ends

    @property
    def takes_lines(self) -> bool:
        """Whether `encode_lines` works: with the compiled kernels, without lower-casing."""
        return self._encoder is not None and not self.lowercase

    def encode_lines(self, table: LineTable, selected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of selected lines, uint16, and for every line where they end after it.

        The same ids as `encode_document` and `encode_conversation` give.
        """
        assert self._encoder is not None
        return self._encoder.encode_lines(table, selected)

    def encode_document(self, text: str) -> np.ndarray:
        """Return uint16 (N,): `<bos>`, the ids of a plain text, `<eos>`."""
        ids = self.encode(text)
        document = np.empty(len(ids) + 2, np.uint16)
        document[0], document[1:-1], document[-1] = rule.BOS, ids, rule.EOS
        return document

    def encode_conversation(
        self, messages: Messages, add_generation_prompt: bool = False
    ) -> np.ndarray:
        """Return uint16 (N,), a conversation as the saved chat template renders it.

        It ends with `<eos>` after an assistant's message and with `[/INST]` after a user's. With
        `add_generation_prompt` the last message must be a user's. UserError where roles are
        unknown or out of turn, a content is no string, or there is no user message.
        """
        contents = conversation.turns(messages, add_generation_prompt)
        ids, ends = self.encode_batch(contents)
        # <bos>, one tag before each content, and one token that closes the whole.
        whole = np.empty(len(ids) + len(contents) + 2, np.uint16)
        whole[0] = rule.BOS
        begin = 0
        for turn, end in enumerate(ends.tolist()):
            whole[begin + turn + 1] = rule.END_INST if turn % 2 else rule.INST
            whole[begin + turn + 2 : end + turn + 2] = ids[begin:end]
            begin = end
        whole[-1] = rule.END_INST if len(contents) % 2 else rule.EOS
        return whole

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`: for encoded text the very same text.

        Byte tokens in a row that are no valid UTF-8 become U+FFFD, one for each byte. UserError
        where an id is outside the vocabulary.
        """
        numbers = np.array(ids if isinstance(ids, np.ndarray) else list(ids), np.int64)
        outside = numbers[(numbers < 0) | (numbers >= len(self.tokens))]
        if len(outside):
            raise UserError(
                f"token id {outside[0]} is outside the vocabulary of {len(self.tokens):,}; "
                "take the tokenizer that the ids were made with"
            )
        if skip_special_tokens:
            numbers = numbers[numbers >= rule.FIRST_BYTE]
        listed = numbers.tolist()
        try:
            return b"".join(map(self._bytes.__getitem__, listed)).decode()
        except UnicodeDecodeError:
            return "".join(self._decode_run(list(run)) for _, run in groupby(listed, _is_byte))

    def save(self, folder: str | Path, model_max_length: int | None = None) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into `folder`.

        `transformers.AutoTokenizer` loads them. `model_max_length`: positions of the model, tokens.
        """
        files.save(Path(folder), self.tokens, self.lowercase, model_max_length)

    @classmethod
    def load(cls, folder: str | Path) -> "ChunkTokenizer":
        """Read tokenizer.json back; UserError where it is missing, damaged or another's."""
        tokens, lowercase = files.load(Path(folder))
        try:
            return cls(tokens, lowercase)
        except ValueError as error:
            path = Path(folder) / files.FILE
            raise UserError(f"{path}: {error}; copy or make it anew") from error

    def _decode_run(self, numbers: list[int]) -> str:
        try:
            return b"".join(map(self._bytes.__getitem__, numbers)).decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(numbers)

    def _prepare(self, text: str) -> bytes:
        return utf8(rule.lower(text) if self.lowercase else text)

    @functools.cached_property
    def _encoder(self) -> Encoder | None:
        found = library()
        return None if found is None else Encoder(found, self.tokens[rule.FIRST_CHUNK :])

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        """The UTF-8 that each token stands for; special tokens as they are written."""
        specials, chunks = self.tokens[: rule.FIRST_BYTE], self.tokens[rule.FIRST_CHUNK :]
        single = [bytes([byte]) for byte in range(256)]
        return [*map(str.encode, specials), *single, *map(str.encode, chunks)]

    @functools.cached_property
    def _vocabulary(self) -> dict[str, int]:
        chunks = self.tokens[rule.FIRST_CHUNK :]
        return {chunk: rule.FIRST_CHUNK + number for number, chunk in enumerate(chunks)}


def _is_byte(number: int) -> bool:
    return rule.FIRST_BYTE <= number < rule.FIRST_CHUNK
