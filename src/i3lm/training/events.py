"""What a run tells on its way, and who listens.

A listener is any callable of an event's name and its row: a function, or a `Listener`, which has
a method for each event.

| event | row | when |
|---|---|---|
| `prepare` | `PrepareRow` | while text becomes tokens |
| `plan` | `PlanRow` | once memory is planned (CPU) |
| `start` | `StartRow` | before the first step of this start |
| `step` | `StepRow` | after each optimizer step |
| `evaluation` | `EvaluationRow` | after each look at held-out text |
| `checkpoint` | `CheckpointRow` | after each checkpoint |
| `note` | `NoteRow` | something the user should know |
| `failure` | `FailureRow` | where a run ends by an error, which is raised next |
| `end` | `EndRow` | at the end, also of a run that was stopped |
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypedDict

from i3lm.errors import UserError


class PrepareRow(TypedDict):
    """How far the preparation of the text is."""

    stage: str  # "reading", "tokenizing", or "scoring": the closing figure
    share: float  # of this stage, 0 to 1


class PlanRow(TypedDict):
    """Bytes that the run is going to take at its peak, by what they are for."""

    runtime: int  # Python, torch, code and caches
    weights: int
    gradients: int
    states: int  # of the optimizer
    activations: int
    total: int
    limit: int | None  # --memory


class StartRow(TypedDict):
    """What begins, or goes on where `step` is not 0."""

    preset: str
    parameters: int
    train_tokens: int
    characters_per_token: float
    context: int  # tokens
    tokens_per_step: int
    precision: str  # "fp32" or "bf16"
    threads: int
    processes: int  # that train together
    step: int


class StepRow(TypedDict):
    """The figures of one optimizer step."""

    step: int
    tokens: int  # since the run began
    seconds: float  # of training, over all starts
    progress: float  # share of the budget, 0 to 1
    loss: float  # nats a token
    learning_rate: float  # of the matrices
    gradient_norm: float  # before it is clipped
    tokens_per_second: float  # of this step
    memory: int  # resident bytes
    evaluate: bool  # held-out text is looked at next
    checkpoint: bool  # a checkpoint is written next


class SampleRow(TypedDict):
    """A reply of the model as it is now."""

    prompt: str
    reply: str


class EvaluationRow(TypedDict):
    """How well the model predicts held-out text."""

    step: int
    seconds: float
    held_out_bits_per_character: float
    sample: SampleRow


class CheckpointRow(TypedDict):
    """A checkpoint and a model folder that were written."""

    step: int


class NoteRow(TypedDict):
    """A sentence for the user."""

    text: str


class FailureRow(TypedDict):
    """Why a run ends before its time."""

    text: str


class EndRow(TypedDict):
    """The figures of the model card, and whether the run was stopped early.

    `held_out_bits_per_character` and `held_out_characters` are missing from a run that was stopped.
    """

    preset: str
    parameters: int
    data: str
    built_in_text: bool  # it learnt from the built-in conversations
    steps: int
    tokens: int
    minutes: float
    tokens_per_second: float  # over all the training time
    peak_memory_bytes: int
    interrupted: bool


Callback: TypeAlias = Callable[[str, dict[str, Any]], None]


class Listener:
    """Base class of listeners; override what you need.

    An exception from a method ends the run, with all up to the last checkpoint saved.
    """

    def __call__(self, event: str, row: dict[str, Any]) -> None:
        """Call the method of this event; an event without one is passed over."""
        method = getattr(self, f"on_{event}", None)
        if method is not None:
            method(row)

    def on_prepare(self, row: PrepareRow) -> None:
        """Text is being prepared."""

    def on_plan(self, row: PlanRow) -> None:
        """Memory is planned."""

    def on_start(self, row: StartRow) -> None:
        """Training begins or goes on."""

    def on_step(self, row: StepRow) -> None:
        """A step was taken."""

    def on_evaluation(self, row: EvaluationRow) -> None:
        """Held-out text was looked at."""

    def on_checkpoint(self, row: CheckpointRow) -> None:
        """A checkpoint was written."""

    def on_note(self, row: NoteRow) -> None:
        """There is something to say."""

    def on_failure(self, row: FailureRow) -> None:
        """The run ends by an error, which comes next."""

    def on_end(self, row: EndRow) -> None:
        """The run is over."""


class Several(Listener):
    """Tells several listeners, in turn."""

    def __init__(self, *listeners: Callback) -> None:
        self.listeners = listeners

    def __call__(self, event: str, row: dict[str, Any]) -> None:
        """Tell all."""
        for listener in self.listeners:
            listener(event, row)


class Guarded(Listener):
    """A listener that may fail without ending the run: it is left out from then on.

    `say` gets one sentence about the failure. UserError passes: it is the user's to mend.
    """

    def __init__(self, name: str, listener: Callback, say: Callable[[str], None]) -> None:
        self.name, self.listener, self.say = name, listener, say
        self.failed = False

    def __call__(self, event: str, row: dict[str, Any]) -> None:
        """Tell the listener, unless it has failed before."""
        if self.failed:
            return
        try:
            self.listener(event, row)
        except UserError:
            raise
        except Exception as error:  # other people's code, the network, a full disk
            self.failed = True
            reason = " ".join(str(error).split()) or type(error).__name__
            self.say(f"{self.name} failed ({reason[:200]}); training goes on without it")
