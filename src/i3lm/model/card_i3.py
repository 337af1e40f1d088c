"""The model card: README.md of a model folder. Needs nothing beside Python."""

import re
from typing import Any

CITATION = """```bibtex
@misc{lorpt2025,
  title  = {Low-Rank Pretraining (LoRPt)},
  author = {FlameF0X},
  year   = {2025},
  url    = {https://github.com/FlameF0X/Low-Rank-Pretraining}
}
@misc{i3,
  title  = {i3-12m},
  author = {FlameF0X},
  year   = {2025},
  url    = {https://huggingface.co/FlameF0X/i3-12m}
}
```"""

BUILT_IN_RIGHTS = "license: apache-2.0\nlanguage: en\n"  # of the built-in conversations
HEADER = """---
library_name: transformers
pipeline_tag: text-generation
{rights}tags: [i3, lorpt, low-rank, conversational, i3lm]
---
"""


PLACE = "PATH_OF_THIS_FOLDER"
# What transformers' own card says where nobody has written one.
UNWRITTEN = "[More Information Needed]"


def placed(card: str, repository: str, theirs: str) -> str:
    """Return the card that goes to `repository`, where transformers would upload `theirs`.

    A card that somebody wrote there stays. Else it is `card`, with the tags that were asked for.
    """
    if UNWRITTEN not in theirs:
        return theirs
    head = theirs.split("---")[1] if theirs.startswith("---") else ""
    wanted = re.findall(r"^- +(\S+)$", head.partition("tags:")[2], re.MULTILINE)

    def more(found: re.Match[str]) -> str:
        tags = found[1].split(", ")
        return f"tags: [{', '.join([*tags, *(tag for tag in wanted if tag not in tags)])}]"

    return re.sub(r"^tags: \[(.*)\]$", more, card, count=1, flags=re.MULTILINE).replace(
        PLACE, repository
    )


def model_card(config: dict[str, Any], parameters: int, run: dict[str, Any] | None) -> str:
    """Return the card of a model with this config.json, and the figures of its run if there are."""
    name = run["preset"] if run else "i3"
    window = config["max_position_embeddings"]
    # Of somebody else's text neither the language nor the terms are known.
    rights = BUILT_IN_RIGHTS if run and run.get("built_in_text") else ""
    return f"""{HEADER.format(rights=rights)}
# {name}

A small conversational language model of {parameters:,} parameters, pretrained from scratch with
i3lm.

## Use

```python
from transformers import pipeline

chat = pipeline("text-generation", model="{PLACE}", trust_remote_code=True)
print(chat([{{"role": "user", "content": "Who are you?"}}]))
```

`trust_remote_code=True` runs the Python files of this folder: read them first. After `import i3lm`
the flag is not needed. On the command line: `i3lm chat {PLACE}`.

## Model

{config["num_hidden_layers"]} layers of three branches: two linear recurrences over time (RWKV-style
mixing and a state space), causal attention of low-rank queries, keys and values, and a feed-forward
network of LoRPt factor pairs, y = x (A B)^T.

| | |
|---|---|
| hidden size, heads | {config["hidden_size"]}, {config["num_attention_heads"]} |
| rank, state size | {config["rank"]}, {config["state_size"]} |
| window | {window} tokens |
| vocabulary | {config["vocab_size"]:,} rows, for chunks of up to 3 characters |

## Training

{_training(run)}

## Limits

It knows what its training text says and no more, is often wrong, and reads at most {window} tokens
(about {window * 2} characters) at once. It repeats the biases of its text. It gives no advice.

## Citation

{CITATION}
"""


def _training(run: dict[str, Any] | None) -> str:
    if not run:
        return "No figures were recorded."
    rows = [
        ("text", run["data"]),
        ("vocabulary", f"{run['vocabulary']:,} tokens"),
        ("steps", f"{run['steps']:,}"),
        ("tokens", f"{run['tokens']:,} ({run['epochs']:.2f} epochs)"),
        ("time", f"{run['minutes']:.1f} minutes on {run['threads']} threads"),
        ("speed", f"{run['tokens_per_second']:,.0f} tokens a second"),
        ("peak memory", f"{run['peak_memory_bytes'] / 1e6:,.0f} MB"),
        ("optimizer", f"{run['optimizer']}, {run['precision']}, seed {run['seed']}"),
        ("dropout", f"{run.get('dropout') or 'none'}"),
    ]
    if "held_out_bits_per_character" in run:
        bits = f"{run['held_out_bits_per_character']:.3f} bits per character"
        how = "at the end, in float32 (the curve on the way is of a shorter part)"
        rows.append(
            ("held-out text", f"{bits} over {run['held_out_characters']:,} characters {how}")
        )
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows)
    return f"| | |\n|---|---|\n{table}\n\nMade with i3lm {run['i3lm_version']}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
