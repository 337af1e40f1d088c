"""Our models in lm-evaluation-harness, context and continuation encoded apart.

A chunk tokenizer may join the last characters of a context with the first of its continuation in
one token; a harness that encodes both at once and cuts then scores other text than it says.
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from i3lm.data.documents import line_form, parse_conversation
from i3lm.errors import UserError
from i3lm.generation import Model, Sampling, TextStream, make_generator, open_model, split_prompt
from i3lm.model.layers_i3 import used_rows
from i3lm.scoring import check_window, score_tokens, window_rule
from i3lm.tokenizer import BOS, EOS, INST, PAD

OWN = Path(__file__).parent
COUNTED = (
    "acc: share of documents whose right choice has the largest summed log-probability (minimal "
    "pairs, questions by choice), or whose free reply holds the answer as whole words and no other "
    "fact that was told (i3lm_questions)",
    "acc_norm: the same with the sum divided by the choice's length in characters",
    "exact_match: share of free, greedy replies that are the right one but for case and "
    "punctuation (tasks of others: as they define it)",
    "bits_per_byte: all nats / ln 2 / bytes of the text in UTF-8; a conversation's tags and end "
    "count with its nats, and in its line form with its bytes",
)


@register_model("i3lm")
class I3LM(LM):
    """An i3 folder, on our own path. `lm_eval --model i3lm --model_args pretrained=DIR` works too.

    Every text begins with `<bos>`, as in training. A text that begins with `[INST]` and is a
    conversation in line form is read as one, its tags as tokens; `[INST]` in any other text is
    plain. Context and continuation are encoded apart. What is longer than the window loses its
    oldest tokens.
    """

    def __init__(self, pretrained: Model, batch_size: int | str = 16, **_: Any) -> None:
        super().__init__()
        self.loaded = open_model(pretrained)
        self.batch = int(batch_size) if str(batch_size).isdigit() else 16
        self.window: int = self.loaded.network.config.max_position_embeddings
        self.used = used_rows(self.loaded.network.config)
        self._device = next(self.loaded.network.parameters()).device

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's cache of requests."""
        return self.loaded.tokenizer.fingerprint

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Name the one form of conversations."""
        return "i3 line form"

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the line form, with `[/INST]` at its end where the assistant comes next."""
        return line_form(chat_history) + (" [/INST]" if add_generation_prompt else "")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a context, `<bos>` in front; a conversation's tags as tokens."""
        ids = self._conversation(text)
        return [BOS, *map(int, self.loaded.tokenizer.encode(text))] if ids is None else ids

    def _conversation(self, text: str) -> list[int] | None:
        text = text.strip()
        if not text.startswith("[INST]"):
            return None
        waits = text.endswith("[/INST]")
        messages = parse_conversation(f"{text} ..." if waits else text)
        if messages is None:
            return None
        messages = messages[:-1] if waits else messages
        return [int(i) for i in self.loaded.tokenizer.encode_conversation(messages, waits)]

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return the summed log-probability of each continuation, and whether it is greedy."""
        rows = []
        for context, continuation in (request.args for request in requests):
            tail = [int(i) for i in self.loaded.tokenizer.encode(continuation)]
            # As much context as the window leaves, a token at least.
            head = self.encode(context)[-max(1, self.window + 1 - len(tail)) :]
            rows.append((head, tail))
        results: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i])))
        for at in range(0, len(order), self.batch):
            chosen = [i for i in order[at : at + self.batch] if rows[i][1]]
            if chosen:
                for i, result in zip(chosen, self._score([rows[i] for i in chosen]), strict=True):
                    results[i] = result
        return results

    @torch.inference_mode()
    def _score(self, rows: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        longest = max(len(head) + len(tail) for head, tail in rows) - 1
        if longest > self.window:  # a continuation that is longer than any window
            if len(rows) > 1:
                return [self._score([row])[0] for row in rows]
            whole = np.array([*rows[0][0], *rows[0][1]])
            return [(-score_tokens(self.loaded.network, whole)[0], False)]
        # Padding stands on the right, where a causal model does not see it.
        ids = torch.full((len(rows), longest), PAD)
        for i, (head, tail) in enumerate(rows):
            text = [*head, *tail][:-1]
            ids[i, : len(text)] = torch.tensor(text)
        logits = self.loaded.network(ids.to(self._device))[..., : self.used].float()
        results = []
        for i, (head, tail) in enumerate(rows):
            scores = logits[i, len(head) - 1 : len(head) - 1 + len(tail)].log_softmax(-1).cpu()
            wanted = torch.tensor(tail)
            total = float(scores.gather(1, wanted[:, None]).double().sum())
            results.append((total, bool((scores.argmax(-1) == wanted).all())))
        return results

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-probability of each whole text, by the windows of `i3lm eval --data`."""
        results = []
        for (text,) in (request.args for request in requests):
            ids = self._conversation(text)
            whole = self.loaded.tokenizer.encode_document(text) if ids is None else np.array(ids)
            results.append(-score_tokens(self.loaded.network, whole)[0])
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what follows each context, greedily unless the task says otherwise."""
        replies = []
        for context, settings in (request.args for request in requests):
            until = settings.get("until") or []
            ids, begin = self._conversation(context), b""
            if ids is None:
                ids, begin = split_prompt(self.loaded.tokenizer, context)
            sampled = settings.get("do_sample", False)
            text = TextStream(
                self.loaded,
                ids,
                max_new_tokens=int(settings.get("max_gen_toks", 128)),
                sampling=Sampling(settings.get("temperature", 1.0) if sampled else 0.0),
                generator=make_generator(0),
                ends=(EOS, INST),
                stop=[until] if isinstance(until, str) else [stop for stop in until if stop],
                begin_with=begin,
            )
            replies.append("".join(text).strip())
        return replies


def evaluate_tasks(
    model: Model,
    tasks: Sequence[str],
    *,
    task_folder: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    batch: int = 16,
) -> dict[str, Any]:
    """Score a model on tasks, by name: ours, those of `task_folder`, or any of the harness.

    Returns `results`: task, then metric to value, with `NAME_stderr` where the harness has one and
    `samples`; `groups` likewise; `counted`, how each metric is counted; the window `rule`. `limit`
    documents a task; `chat` asks as a conversation (the harness's `apply_chat_template`).

    UserError: unknown tasks, a task folder that is none, data that is not to be had offline.
    """
    if task_folder is not None and not Path(task_folder).is_dir():
        raise UserError(f"--task-folder {task_folder} is no folder; name one with task files")
    loaded = open_model(model)
    lm = I3LM(loaded, batch)
    own = [OWN, *([Path(task_folder)] if task_folder else [])]
    with _quiet():
        manager = TaskManager(include_path=[*own], include_defaults=False)
        if any(task not in manager.all_tasks for task in tasks):
            manager = TaskManager(include_path=[*own])  # thousands of files: seconds
        unknown = [task for task in tasks if task not in manager.all_tasks]
        if unknown or not tasks:
            known = ", ".join(n for n in TaskManager(None, [*own], False).all_tasks)
            raise UserError(f"no task is named {', '.join(unknown) or 'so'}; here are: {known}")
        try:
            found = simple_evaluate(
                lm,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                num_fewshot=num_fewshot,
                apply_chat_template=chat,
                log_samples=False,
                bootstrap_iters=100,
                batch_size=batch,
            )
        except (ConnectionError, OSError) as error:
            reason = str(error).splitlines()[0][:150]
            raise UserError(
                f"the data of {', '.join(tasks)} is not to be had ({reason}); connect to the "
                "network once, or take tasks that bring theirs (i3lm)"
            ) from None
    assert found is not None
    counts = {name: count["effective"] for name, count in found["n-samples"].items()}
    groups = found.get("groups", {})
    rows = {name: _metrics(row) for name, row in found["results"].items()}
    for name, count in counts.items():
        rows.setdefault(name, {})["samples"] = count
    context, stride = check_window(loaded.network, None, None)
    return {
        "results": {name: row for name, row in rows.items() if row and name not in groups},
        "groups": {name: row for name, row in rows.items() if row and name in groups},
        "counted": list(COUNTED),
        "rule": f"every text begins with <bos>; choices see at most the newest {context} tokens; "
        f"whole texts: {window_rule(context, stride)}",
    }


def _metrics(row: dict[str, Any]) -> dict[str, Any]:
    """Return metric to value, without the harness's filter names and what it did not measure."""
    values = {}
    for name, value in row.items():
        metric, _, filtered = name.partition(",")
        if not isinstance(value, int | float) or not filtered or math.isnan(value):
            continue
        plain = metric.removesuffix("_stderr")
        shown = plain if filtered == "none" else f"{plain} ({filtered})"
        values[shown + metric.removeprefix(plain)] = value
    return values


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness from telling of each of its steps."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
