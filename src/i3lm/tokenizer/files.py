"""The tokenizer as files that `transformers` loads with no code of ours."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from i3lm.errors import UserError
from i3lm.files import read_small, write_atomic
from i3lm.tokenizer import rule
from i3lm.tokenizer.conversation import CHAT_TEMPLATE

FILE = "tokenizer.json"


def describe(tokens: Sequence[str], lowercase: bool) -> dict[str, Any]:
    """Return the content of tokenizer.json.

    The vocabulary stands in the pattern that splits the text, so that every piece is a token or
    one unknown character, and the model only looks pieces up.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": number in (rule.INST, rule.END_INST),
                "rstrip": number in (rule.INST, rule.END_INST),
                "normalized": False,
                "special": True,
            }
            for number, token in enumerate(rule.SPECIAL_TOKENS)
        ],
        "normalizer": {"type": "Lowercase"} if lowercase else None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": _pattern(tokens[rule.FIRST_CHUNK :])},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": rule.SPECIAL_TOKENS[rule.UNK],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": True,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [],
        },
    }


def save(
    folder: Path, tokens: Sequence[str], lowercase: bool, model_max_length: int | None
) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    names = {name: rule.SPECIAL_TOKENS[number] for name, number in _NAMED.items()}
    config = {
        "tokenizer_class": "TokenizersBackend",
        **names,
        "extra_special_tokens": [rule.SPECIAL_TOKENS[n] for n in (rule.INST, rule.END_INST)],
        "padding_side": "left",  # a recurrent state would run through padding on the right
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    folder.mkdir(parents=True, exist_ok=True)
    # tokenizer.json comes last: a folder that has it has them all.
    write_atomic(folder / "chat_template.jinja", CHAT_TEMPLATE.encode())
    write_atomic(folder / "tokenizer_config.json", _json(config, indent=2))
    write_atomic(folder / FILE, _json(describe(tokens, lowercase)))


_NAMED = {
    "unk_token": rule.UNK,
    "pad_token": rule.PAD,
    "bos_token": rule.BOS,
    "eos_token": rule.EOS,
}


def load(folder: Path) -> tuple[list[str], bool]:
    """Return the tokens in id order and whether texts are lower-cased.

    UserError where tokenizer.json is missing, damaged, or says anything else than `describe`.
    """
    path = folder / FILE
    try:
        found = json.loads(read_small(path))
        vocabulary = found["model"]["vocab"]
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        lowercase = found["normalizer"] is not None
        wanted = describe(tokens, lowercase)
        same = all(
            found[part] == wanted[part]
            for part in ("added_tokens", "normalizer", "pre_tokenizer", "decoder", "model")
        )
    except FileNotFoundError:
        raise UserError(f"{folder}: no tokenizer here ({FILE} is missing)") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as a tokenizer; copy or make it anew") from error
    if not same:
        raise UserError(f"{path}: not a tokenizer that i3lm made; copy or make it anew")
    return tokens, lowercase


def _json(content: Any, indent: int | None = None) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=indent) + "\n").encode()


def _pattern(chunks: Sequence[str]) -> str:
    """Return the rule for this vocabulary as an Oniguruma pattern."""
    known = set(chunks)
    common = _any_of(rule.TRIGRAMS & known)
    pairs = _any_of(chunk for chunk in known if len(chunk) == 2)
    triples = _any_of(chunk for chunk in known if len(chunk) == 3)
    branches = [common] if common else []
    if triples:
        branches += [f"(?<= ){triples}", f"{triples}(?= )"]
    if pairs:
        branches.append(pairs)
    return "|".join([*branches, "(?m:.)"])


def _any_of(chunks: Iterable[str]) -> str:
    """Return a pattern for any of the chunks, which are of one length; '' where there are none."""
    heads: dict[str, list[str]] = {}
    for chunk in sorted(chunks):
        heads.setdefault(chunk[0], []).append(chunk[1:])
    branches = []
    for head, tails in heads.items():
        if len(tails[0]) > 1:
            branches.append(_literal(head) + _any_of(tails))
        else:
            branches.append(f"{_literal(head)}[{''.join(map(_literal, tails))}]")
    return f"(?:{'|'.join(branches)})" if branches else ""


def _literal(character: str) -> str:
    if character.isascii() and not character.isalnum():
        return f"\\x{{{ord(character):X}}}"
    return character
