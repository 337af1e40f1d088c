"""What is asked and answered over HTTP, in OpenAI's form: checked, and described, by pydantic.

Fields that have no meaning here (`user`, `metadata`, ...) are left alone. Those that would change
the answer and are not supported may stand there with the value that changes nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from i3lm.chatting import Message
from i3lm.presets import TEMPERATURE, TOP_P

MESSAGES, PARTS, STOPS, STOP_LENGTH = 1000, 1000, 16, 500  # at most
DEFAULT_TOKENS = 256


def _false(value: bool) -> bool:
    if value:
        raise ValueError("must be false")
    return value


# Not Literal, for which 0 is False and True is 1.
Off = Annotated[bool, AfterValidator(_false), Field(json_schema_extra={"const": False})]
One = Annotated[int, Field(ge=1, le=1)]
Zero = Annotated[float, Field(ge=0, le=0)]
Nothing = Annotated[list[Any], Field(max_length=0)]
Stop = Annotated[str, Field(min_length=1, max_length=STOP_LENGTH)]
Tokens = Annotated[int, Field(ge=1, le=1 << 31)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class StreamOptions(_Body):
    """What a stream holds besides the text."""

    include_usage: bool | None = Field(None, description="Send the token counts before [DONE].")


class Asked(_Body):
    """What a chat and a completion have in common."""

    model: str | None = Field(None, description="The model's id; without it, the one served.")
    stream: bool | None = Field(None, description="Send the text in pieces, as server-sent events.")
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = Field(
        None, description=f"Of the reply; {DEFAULT_TOKENS} without it. The server has a limit."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description=f"0 takes the likeliest token each time. {TEMPERATURE} without it."
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description=f"Draw among the likeliest tokens that together reach this. {TOP_P}."
    )
    top_k: Annotated[int, Field(ge=1, le=1 << 31)] | None = Field(
        None, description="Draw among this many likeliest tokens (not in OpenAI's API)."
    )
    # Bounds that doubles hold and print exactly: so they stand in the description.
    seed: Annotated[int, Field(ge=-(2**53), le=2**53)] | None = Field(
        None, description="The same seed gives the same text."
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=STOPS)] | None = Field(
        None, description="Texts before which the reply ends."
    )
    n: One | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def tokens(self) -> int | None:
        """How many tokens the reply may have, if that is said."""
        return self.max_tokens

    @property
    def sampling(self) -> dict[str, Any]:
        """Settings for `i3lm.chat` and `i3lm.generation.stream`."""
        return {
            "temperature": TEMPERATURE if self.temperature is None else self.temperature,
            "top_p": TOP_P if self.top_p is None else max(self.top_p, 1e-6),
            "top_k": self.top_k,
            "seed": self.seed,
        }


class TextPart(_Body):
    """A part of a message; only texts can be read."""

    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    """A message of a conversation. `developer` means `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=PARTS)]

    def plain(self) -> Message:
        """Return the message as `i3lm.chat` takes it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class TextFormat(_Body):
    """The only form of a reply."""

    type: Literal["text"]


class ChatAsked(Asked):
    """A conversation that wants a reply: user and assistant alternate, the user's comes last.

    A first message may be the system's.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MESSAGES)]
    max_completion_tokens: Tokens | None = Field(None, description="As max_tokens.")
    tools: Nothing | None = None
    functions: Nothing | None = None
    logprobs: Off | None = None
    response_format: TextFormat | None = None

    @property
    def tokens(self) -> int | None:
        """How many tokens the reply may have, if that is said."""
        return self.max_completion_tokens or super().tokens


class CompletionAsked(Asked):
    """A text that wants to be continued."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    echo: Off | None = None
    best_of: One | None = None
    logprobs: None = None
    suffix: None = None

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class Usage(BaseModel):
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AssistantMessage(BaseModel):
    """The reply."""

    role: Literal["assistant"]
    content: str


Finish = Literal["stop", "length"]


class ChatChoice(BaseModel):
    """The one reply."""

    index: int
    message: AssistantMessage
    finish_reason: Finish


class CompletionChoice(BaseModel):
    """The one text."""

    index: int
    text: str
    finish_reason: Finish
    logprobs: None


class _Answer(BaseModel):
    id: str
    created: int
    model: str
    usage: Usage
    notices: list[str] = Field(
        description="What the model could not read or say, a sentence each (not in OpenAI's API)."
    )
    forgotten_messages: int = Field(
        description="How many of the messages, the oldest but the system's, "
        "fell out of the window (not in OpenAI's API)."
    )


class ChatAnswer(_Answer):
    """A reply to a conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class CompletionAnswer(_Answer):
    """A continuation."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class Model(BaseModel):
    """The model that is served."""

    model_config = ConfigDict(extra="allow")
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parameters: int
    context_window: int = Field(description="Tokens that the model sees at once.")
    max_new_tokens: int = Field(description="The server's limit for a reply.")
    default_max_tokens: int = Field(description="Of a reply, where a request says nothing.")
    default_temperature: float = Field(description="Where a request says nothing.")


class Models(BaseModel):
    """All models: the one."""

    object: Literal["list"]
    data: list[Model]


class Health(BaseModel):
    """The server works."""

    status: Literal["ok", "stopping"]
    running: int = Field(description="Replies that are being written.")
    waiting: int = Field(description="Requests in the queue.")


class ErrorBody(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """An error in OpenAI's form."""

    error: ErrorBody
