"""Chat: a conversation that is kept within the model's window."""

import bisect
from collections.abc import Iterator, Sequence
from typing import Any

from i3lm import exported
from i3lm.errors import UserError
from i3lm.generation import Model, TextStream, open_model
from i3lm.model.window_i3 import reserve
from i3lm.presets import TEMPERATURE, TOP_P
from i3lm.streaming import (
    LONGEST_CHUNK,
    Notify,
    Sampling,
    TokenText,
    ignore,
    make_generator,
)
from i3lm.tokenizer import EOS, INST, ChunkTokenizer
from i3lm.tokenizer.conversation import turns

Message = dict[str, str]


class Chat:
    """A conversation with a model.

    `messages` are the user's and the assistant's, all of them, also those that no longer fit the
    model's window; `system`, where given, always stands before what the model sees.
    `stream` is the last reply's `TokenText`, with its token count and finish reason.
    """

    def __init__(
        self,
        model: Model,
        *,
        system: str | None = None,
        max_new_tokens: int = 256,
        temperature: float = TEMPERATURE,
        top_k: int | None = None,
        top_p: float | None = TOP_P,
        seed: int | None = None,
        notify: Notify = ignore,
    ) -> None:
        self.system = system
        self.stream: TokenText | None = None
        self._tokenizer: ChunkTokenizer
        self.window: int  # the tokens that the model sees at once
        self._limit, self._notify = max_new_tokens, notify
        self._sampling = Sampling(temperature, top_k, top_p)
        self._generator = make_generator(seed)
        self._open(model)
        self.reset()

    def _open(self, model: Model) -> None:
        self._loaded = open_model(model)
        self._tokenizer = self._loaded.tokenizer
        self.window = self._loaded.network.config.max_position_embeddings

    @property
    def forgotten(self) -> int:
        """How many of `messages`, the oldest, no longer fit the window."""
        return self._first

    def reset(self) -> None:
        """Forget the conversation; the system message stays."""
        self.messages: list[Message] = []
        self._first = 0  # the oldest message that the model still sees

    def reply(self, text: str) -> Iterator[str]:
        """Say `text` and yield the reply in pieces.

        The reply joins the history at its end, or as far as it came when the iterator is closed; a
        turn without a reply leaves no trace. UserError for an empty text, or a system message that
        fills the window.
        """
        if not text.strip():
            raise UserError("the message is empty; say something")
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            self.stream = self._answer()
            for piece in self.stream:
                pieces.append(piece)
                yield piece
        finally:
            content = "".join(pieces).strip()
            if content:
                self.messages.append({"role": "assistant", "content": content})
            else:
                self.messages.pop()

    def begin(self, text: str, stop: Sequence[str] = ()) -> TokenText:
        """Say `text` and return the reply, which stays out of the history."""
        if not text.strip():
            raise UserError("the message is empty; say something")
        self.messages.append({"role": "user", "content": text})
        self.stream = self._answer(stop)
        return self.stream

    def _answer(self, stop: Sequence[str] = ()) -> TokenText:
        return TextStream(
            self._loaded,
            self._prompt(),
            max_new_tokens=self._limit,
            sampling=self._sampling,
            generator=self._generator,
            ends=(EOS, INST),
            stop=stop,
            notify=self._notify,
        )

    def _prompt(self) -> list[int]:
        """Return the ids of what fits the window; whole turns fall out, the oldest first."""
        window = self.window
        room = window - reserve(window)
        forgotten = self._first
        self._first += 2 * self._surely_too_long(room)
        ids = self._encode(self.messages[self._first :])
        while len(ids) > room and self._first < len(self.messages) - 1:
            self._first += 2
            ids = self._encode(self.messages[self._first :])
        if self._first and not forgotten:
            self._notify(
                f"the conversation outgrows the model's window of {window} tokens: "
                "from here on its oldest turns are forgotten"
            )
        if len(ids) > room:
            text = self.messages[-1]["content"]
            ids, kept = self._newest_part(text, room)
            self._notify(
                f"the message is longer than the model's window of {window} tokens: "
                f"only the last {kept:,} of its {len(text):,} characters are read"
            )
        return ids

    def _surely_too_long(self, room: int) -> int:
        """Return how many of the oldest turns cannot fit, without encoding them again and again."""
        sizes = [len(message["content"].strip()) for message in self.messages[self._first :]]
        turns, characters = (len(sizes) - 1) // 2, sum(sizes)
        for turn in range(turns):
            if characters <= room * LONGEST_CHUNK:
                return turn
            characters -= sizes[2 * turn] + sizes[2 * turn + 1]
        return turns

    def _newest_part(self, text: str, room: int) -> tuple[list[int], int]:
        def encode(start: int) -> list[int]:
            return self._encode([{"role": "user", "content": text[start:]}])

        start = bisect.bisect_left(
            range(len(text)), True, key=lambda start: len(encode(start)) <= room
        )
        if start == len(text):
            raise UserError("the system message fills the model's window; shorten it")
        return encode(start), len(text) - start

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        ids = self._tokenizer.encode_conversation([*system, *messages], add_generation_prompt=True)
        return [int(i) for i in ids]


class ExportedChat(Chat):
    """A conversation with an exported folder."""

    def _open(self, model: Any) -> None:
        self._graphs = exported.open_exported(model)
        self._tokenizer, self.window = self._graphs.tokenizer, self._graphs.window

    def _answer(self, stop: Sequence[str] = ()) -> TokenText:
        return exported.follow(
            self._graphs,
            self._prompt(),
            self._sampling,
            self._generator,
            max_new_tokens=self._limit,
            ends=(EOS, INST),
            stop=stop,
            notify=self._notify,
        )


def open_chat(model: Model, messages: Sequence[Message], **settings: Any) -> tuple[Chat, str]:
    """Return a chat with all of `messages` but the last, and the last one's text, the user's.

    A first message of the role `system` stays whatever the length. `settings` are those of `Chat`.
    UserError where they are no conversation, in the words of the chat template.
    """
    turns(messages, add_generation_prompt=True)
    history = [*messages]
    system = history.pop(0)["content"] if history[0]["role"] == "system" else None
    talk = Chat(model, system=system, **settings)
    talk.messages = history[:-1]
    return talk, history[-1]["content"]


def chat(
    model: Model,
    messages: str | Sequence[Message],
    *,
    max_new_tokens: int = 256,
    temperature: float = TEMPERATURE,
    top_k: int | None = None,
    top_p: float | None = TOP_P,
    seed: int | None = None,
    notify: Notify = ignore,
) -> str:
    """Return the assistant's answer to `messages`: a text, or chat messages that end with a user's.

    A first message of the role `system` stays whatever the length; the oldest turns give way to the
    window, and `notify` gets a sentence. UserError where they are no conversation.
    """
    history = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    talk, text = open_chat(
        model,
        history,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        notify=notify,
    )
    return "".join(talk.reply(text)).strip()
