"""From a configuration to a trained model folder."""

import contextlib
import dataclasses
import errno
import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from i3lm import __version__
from i3lm.data import Corpus
from i3lm.data.segments import drop_segments
from i3lm.errors import UserError
from i3lm.files import remove_parts, write_atomic, writing_to
from i3lm.folder import Loaded, load_folder, save_folder
from i3lm.model import COMPILED
from i3lm.model.network import I3Network
from i3lm.report.listener import NAME as REPORT
from i3lm.report.listener import with_report
from i3lm.training.budget import choose_preset
from i3lm.training.checkpoint import list_checkpoints
from i3lm.training.config import TrainConfig
from i3lm.training.hardware import (
    choose_device,
    choose_precision,
    give_back_freed,
    resident_bytes,
)
from i3lm.training.heldout import (
    FINAL_TOKENS,
    QUICK_TOKENS,
    bits_per_character,
    first_documents,
    sample_prompts,
    sample_reply,
)
from i3lm.training.joining import LOST, Meeting, joined, shared_config, shared_corpus
from i3lm.training.lock import lock_folder, started_by_same
from i3lm.training.loop import Trainer
from i3lm.training.parallel import Alone, Interrupted, Lost
from i3lm.training.planning import plan_run, require_machine
from i3lm.training.run_folder import check_folder, drop_empty, require_room
from i3lm.training.text import as_chosen, begun_as, open_text, require_enough, streamed
from i3lm.units import format_bytes, format_duration

Listener = Callable[[str, dict], None]  # of the events in `training.events`


@dataclass(frozen=True)
class TrainResult:
    """Where the model is and how the run went."""

    folder: Path
    figures: dict  # as on the model card
    interrupted: bool

    def load(self) -> Loaded:
        """Load the model, to chat with it."""
        return load_folder(self.folder)


def train(
    config: TrainConfig, *, resume: bool = False, listener: Listener | None = None
) -> TrainResult:
    """Pretrain a model as `config` says and leave a complete model folder in `config.out`.

    With `resume`, go on from the newest sound checkpoint of that folder. The folder then holds the
    model (loadable by transformers), `run.json`, `metrics.jsonl`, `report.html`, `data/` (the
    token files) and `checkpoints/`. Raises UserError for anything the user can mend.
    """
    choose_device(config.device)  # before anybody waits for this process
    with joined(config, resume) as (group, meeting):
        if group.chief:
            return _lead(config, resume, _careful(listener), group, meeting)
        return _train(config, Path(config.out), resume, lambda *event: None, group, meeting)


def _lead(
    config: TrainConfig, resume: bool, tell: Listener, group: Alone, meeting: Meeting | None
) -> TrainResult:
    """Train as the process that writes, with the folder to itself."""
    run = Path(config.out)
    resume = resume or (started_by_same(run) and (run / "run.json").exists())
    check_folder(run, resume)
    with lock_folder(run) as warning:
        if warning:
            tell("note", {"text": warning})
        ours = False  # what lies in the folder
        try:
            check_folder(run, resume)  # again: another run may have ended meanwhile
            ours = not resume
            if ours:
                drop_segments(run / "data")
            with writing_to(run):
                remove_parts(run)
                return _train(config, run, resume, with_report(run, tell), group, meeting)
        except (UserError, SystemExit) as error:  # the latter by a signal: torchrun's, if one fails
            refused = isinstance(error, UserError)
            if refused and ours and not list_checkpoints(run):  # nothing that could go on
                for name in ("run.json", "metrics.jsonl", REPORT):
                    (run / name).unlink(missing_ok=True)
                drop_segments(run / "data")
            drop_empty(run)
            raise


def _train(
    config: TrainConfig,
    run: Path,
    resume: bool,
    tell: Listener,
    group: Alone,
    meeting: Meeting | None,
) -> TrainResult:
    try:
        return _prepare_and_run(config, run, resume, tell, group, meeting)
    except BaseException as error:
        with contextlib.suppress(Exception):  # it may have come from a listener
            reason = " ".join(str(error).split()) or type(error).__name__
            tell("failure", {"text": f"the run ended without finishing: {reason[:300]}"})
        raise


def _prepare_and_run(
    config: TrainConfig,
    run: Path,
    resume: bool,
    tell: Listener,
    group: Alone,
    meeting: Meeting | None,
) -> TrainResult:
    device = choose_device(config.device, group.launch.local_rank)
    require_machine(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    begun = None
    if group.chief:
        config = dataclasses.replace(config, precision=choose_precision(config.precision, device))
        begun = begun_as(config, run, tell) if resume else None
        if begun:
            config = as_chosen(config, begun)
        config, why = choose_preset(config, group.launch)
        if why:
            tell("note", {"text": why})
    if meeting:
        config = shared_config(meeting, config)
        device = choose_device(config.device, group.launch.local_rank)
        resume = bool(group.from_chief(resume)[0])
    sizes = config.architecture()  # refuse impossible sizes and limits before any work
    sequences = max(1, round(config.batch_tokens / sizes.max_position_embeddings))
    if group.launch.size > sequences:
        raise UserError(
            f"{group.launch.size} processes share the {sequences} sequences of a step; start "
            f"fewer, or raise --batch-tokens {config.batch_tokens}"
        )
    if device.type == "cpu":
        plan_run(config, sizes, group.launch)

    def make() -> Corpus:
        return open_text(config, begun, tell)

    corpus = shared_corpus(meeting, run / "data", make) if meeting else make()
    corpus = streamed(corpus, config, group.launch.rank)
    architecture = config.architecture(len(corpus.tokenizer))
    require_enough(corpus, config, architecture.max_position_embeddings)
    if device.type == "cpu":
        give_back_freed()
        config, cost = plan_run(config, architecture, group.launch, read=True)
        (bits,) = group.from_chief(config.state_bits or 32)
        config = dataclasses.replace(config, state_bits=int(bits))
        tell("plan", {**dataclasses.asdict(cost), "total": cost.total, "limit": config.memory})

    torch.manual_seed(config.seed)
    network = I3Network(architecture).to(device)
    trainer = Trainer(config, corpus, network, config.precision, device, group)
    with contextlib.closing(trainer), trainer.signals():
        if resume:
            for note in trainer.resume():
                tell("note", {"text": note})
            if trainer.spent:
                text = "nothing is left to train; give more than it has had with --time or --steps"
                if config.steps and config.seconds:
                    text += ", which both end it"
                tell("note", {"text": f"{_had(trainer)}: {text}"})
        else:
            trainer.spread()
        if not group.chief:
            return _follow(trainer)
        if not resume:
            bits = 2 * config.weight_bits + (config.state_bits or 32)
            require_room(run, architecture.parameters * bits // 8)
        # Not before: what a resumed run refuses must not become the run's own settings.
        write_atomic(run / "run.json", config.to_json().encode())
        if not COMPILED:
            text = "the C kernels are not built (no compiler?); training runs on slower torch code"
            tell("note", {"text": text})
        if config.stream:
            size = format_bytes(config.stream)
            text = f"the tokens below are a sample; training reads on, {size} of tokens at a time"
            tell("note", {"text": text})
        tell(
            "start",
            {
                "preset": config.preset,
                "parameters": architecture.parameters,
                "train_tokens": len(corpus.train),
                "characters_per_token": corpus.characters_per_token,
                "context": architecture.max_position_embeddings,
                "tokens_per_step": trainer.sequences * trainer.context,
                "precision": config.precision,
                "threads": torch.get_num_threads(),
                "processes": group.launch.size,
                "step": trainer.counters.step,
            },
        )
        try:
            return _run(trainer, corpus, tell)
        except Lost as error:
            assert meeting is not None
            meeting.mark(LOST)  # the others see that this one is left, however long it saves
            if not group.keeps(trainer.counters.step):
                raise
            trainer.save()
            raise Lost(f"{error}", saved=trainer.counters.step) from None


def _follow(trainer: Trainer) -> TrainResult:
    """Train beside the chief, which speaks and writes."""
    interrupted = False
    try:
        for _ in trainer.train():
            trainer.keep_memory()
    except Interrupted:
        interrupted = True
    trainer.group.attend()
    return TrainResult(trainer.run, {}, interrupted)


def _run(trainer: Trainer, corpus: Corpus, tell: Listener) -> TrainResult:
    prompts = sample_prompts(corpus.held_out, corpus.tokenizer)
    quick = first_documents(corpus.held_out, QUICK_TOKENS, corpus.tokenizer)

    evaluated = -1  # the step that was looked at last

    def scored(share: float) -> None:
        tell("prepare", {"stage": "scoring", "share": share})

    def evaluate() -> None:
        nonlocal evaluated
        trainer.counters.owes_evaluation = trainer.progress < 1
        try:
            bits = bits_per_character(trainer, quick, on_the_way=True)
            sample = sample_reply(trainer, corpus.tokenizer, prompts) if math.isfinite(bits) else {}
        except Interrupted:  # the next step says so to all processes
            trainer.network.train()
            return
        trainer.counters.owes_evaluation = False
        if not math.isfinite(bits):  # the next step finds out too, and goes back
            tell("note", {"text": f"the held-out loss of step {trainer.counters.step} is {bits}"})
            trainer.network.train()
            return
        row = {
            "step": trainer.counters.step,
            "seconds": round(trainer.seconds, 3),
            "held_out_bits_per_character": bits,
            "sample": sample,
        }
        trainer.network.train()
        trainer.metrics.write(row)
        tell("evaluation", row)
        evaluated = trainer.counters.step
        gc.collect()  # and its free lists, else what scoring and the report took scatters
        give_back_freed()

    def write_model(figures: dict) -> None:
        weights = trainer.group.weights()
        save_folder(trainer.run, trainer.network, corpus.tokenizer, run=figures, weights=weights)

    def save() -> None:
        figures = _figures(trainer, corpus)
        try:
            trainer.save()
            write_model(figures)
        except (UserError, OSError, SafetensorError) as error:  # the next one may succeed
            what = error if isinstance(error, UserError) else f"no model was written ({error})"
            tell("note", {"text": f"{what}; training goes on"})
            return
        tell("checkpoint", {"step": trainer.counters.step})

    try:
        if trainer.counters.owes_evaluation:
            evaluate()
        for row in trainer.train():
            if "note" in row:
                tell("note", {"text": row["note"]})
                continue
            trainer.metrics.write({k: row[k] for k in row if k not in ("evaluate", "checkpoint")})
            tell("step", row)
            if note := trainer.keep_memory():
                tell("note", {"text": note})
            if row["evaluate"] and row["progress"] < 1:
                evaluate()
            if row["checkpoint"] and row["progress"] < 1:
                save()
        finished = True
    except Interrupted:
        finished = False
    final = None
    trainer.save()
    if finished:
        try:
            if evaluated != trainer.counters.step:
                evaluate()
            final = first_documents(corpus.held_out, FINAL_TOKENS, corpus.tokenizer)
            bits = bits_per_character(trainer, final, report=scored)
        except Interrupted:
            final = None
            trainer.save()
    figures = _figures(trainer, corpus)
    if final:
        figures["held_out_bits_per_character"] = bits
        figures["held_out_characters"] = final.characters
    try:
        write_model(figures)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the model cannot be written ({error}); its newest checkpoint is whole: make "
            f"room, then i3lm train --resume {trainer.run}"
        ) from None
    trainer.group.attend()
    tell("end", {**figures, "interrupted": final is None})
    return TrainResult(trainer.run, figures, interrupted=final is None)


def _careful(listener: Listener | None) -> Listener:
    """Return the listener, whose terminal may go away without ending the run."""

    def tell(event: str, row: dict) -> None:
        if listener is None:
            return
        try:
            listener(event, row)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise

    return tell


def _had(trainer: Trainer) -> str:
    counters = trainer.counters
    return f"the run has had {counters.step:,} steps in {format_duration(counters.seconds)}"


def _figures(trainer: Trainer, corpus: Corpus) -> dict:
    """Return the run's figures for the model card."""
    config, counters = trainer.config, trainer.counters
    return {
        "i3lm_version": __version__,
        "preset": config.preset,
        "parameters": trainer.network.config.parameters,
        "data": corpus.manifest["description"],
        "built_in_text": "embedded" in corpus.manifest["source"],
        "vocabulary": len(corpus.tokenizer),
        "context": trainer.context,
        "steps": counters.step,
        "tokens": counters.tokens,
        "epochs": corpus.epochs(counters.tokens),
        "minutes": trainer.seconds / 60,
        "tokens_per_second": counters.tokens / max(trainer.seconds, 1e-9),
        "optimizer": config.optimizer,
        "dropout": round(trainer.dropping.share, 4),
        "precision": config.precision,
        "threads": torch.get_num_threads(),
        "processes": trainer.group.launch.size,
        "peak_memory_bytes": resident_bytes()[1],
        "seed": config.seed,
    }
