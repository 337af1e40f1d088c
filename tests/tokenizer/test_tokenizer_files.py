"""The saved folder, conversations and the chat template."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_texts import wild

from i3lm.errors import UserError
from i3lm.tokenizer import BOS, END_INST, EOS, INST, PAD, UNK, ChunkTokenizer


def chat(*contents, system=None):
    messages = [
        {"role": ("user", "assistant")[turn % 2], "content": content}
        for turn, content in enumerate(contents)
    ]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def test_saved_folder_loads_again(tokenizer, folder):
    again = ChunkTokenizer.load(folder)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.tokens == tokenizer.tokens
    assert not again.lowercase


def test_lower_case_is_saved(tokenizer, tmp_path):
    ChunkTokenizer(tokenizer.tokens, lowercase=True).save(tmp_path / "new")
    assert ChunkTokenizer.load(tmp_path / "new").lowercase


def test_lower_casing_folder_agrees_with_transformers(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    lower = ChunkTokenizer(tokenizer.tokens, lowercase=True)
    lower.save(tmp_path)
    fast = AutoTokenizer.from_pretrained(tmp_path)
    messages = chat(" [INST] THE CAT <EOS> <eos> ΑΣ", "İI [inst]", system="WHY ")
    ids = lower.encode_conversation(messages).tolist()
    assert fast.apply_chat_template(messages, return_dict=True)["input_ids"] == ids
    assert lower.decode(ids, False) == (
        "<bos>[INST]why\n\n[\u200binst] the cat <eos> <\u200beos> ασ[/INST]i\u0307i [inst]<eos>"
    )


def test_a_folder_that_transformers_saved_loads(tokenizer, fast, tmp_path):
    fast("the cat", padding="max_length", max_length=20, truncation=True)
    fast.save_pretrained(tmp_path)
    assert ChunkTokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint


def test_transformers_knows_the_settings(tokenizer, fast):
    assert (fast.unk_token_id, fast.pad_token_id) == (UNK, PAD)
    assert (fast.bos_token_id, fast.eos_token_id) == (BOS, EOS)
    assert set(fast.all_special_ids) == {UNK, PAD, BOS, EOS, INST, END_INST}
    assert fast.padding_side == "left"
    assert fast.model_max_length == 256
    assert len(fast) == len(tokenizer)
    batch = fast(["the cat sat", "the"], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"][1][0] == PAD
    assert batch["attention_mask"][1][0] == 0


@pytest.mark.parametrize("damage", ["truncated", "binary", "list", "foreign", "nested"])
def test_damaged_files_are_refused(folder, tmp_path, damage):
    path = tmp_path / "tokenizer.json"
    data = (folder / "tokenizer.json").read_bytes()
    path.write_bytes(
        {
            "truncated": data[: len(data) // 2],
            "binary": b"\xff\xfe\0",
            "list": b"[1, 2]",
            "foreign": b'{"model": {"vocab": {"a": "b", "c": 1}}, "normalizer": null}',
            "nested": b"[" * 100_000,
        }[damage]
    )
    with pytest.raises(UserError, match="cannot be read as a tokenizer") as error:
        ChunkTokenizer.load(tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["pre_tokenizer"]["pattern"].update(Regex="(?m:.)"),
        lambda content: content["model"].update(byte_fallback=False),
        lambda content: content["model"]["vocab"].pop("<0x41>"),
        lambda content: content["model"]["vocab"].update({"abcd": 9999}),
        lambda content: content["added_tokens"].pop(),
        lambda content: content.update(normalizer={"type": "NFC"}),
        lambda content: content.update(decoder=None),
    ],
)
def test_foreign_tokenizers_are_refused(folder, tmp_path, change):
    content = json.loads((folder / "tokenizer.json").read_bytes())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="copy or make it anew"):
        ChunkTokenizer.load(tmp_path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        ChunkTokenizer.load(tmp_path / "nothing")


def test_conversation_by_hand(tokenizer):
    def ids(text):
        return tokenizer.encode(text).tolist()

    both = tokenizer.encode_conversation(chat(" hi\n", "the cat "))
    assert both.tolist() == [BOS, INST, *ids("hi"), END_INST, *ids("the cat"), EOS]
    asked = tokenizer.encode_conversation(chat("hi", system=" be kind "), True)
    assert asked.tolist() == [BOS, INST, *ids("be kind\n\nhi"), END_INST]
    assert tokenizer.encode_conversation(chat("", "")).tolist() == [BOS, INST, END_INST, EOS]


@given(st.lists(wild, min_size=1, max_size=5), st.none() | wild)
def test_template_and_conversation_agree(tokenizer, fast, contents, system):
    messages = chat(*contents, system=system)
    for add in {False, len(contents) % 2 == 1}:
        ids = tokenizer.encode_conversation(messages, add)
        rendered = fast.apply_chat_template(messages, add_generation_prompt=add, return_dict=True)
        assert rendered["input_ids"] == ids.tolist()
        # Nothing that somebody typed became a tag: one for each turn, one <bos>, one <eos>.
        tags = [i for i in ids.tolist() if i < 6]
        turns = [INST, END_INST] * ((len(contents) + 1) // 2)
        assert tags == [BOS, *turns] + [EOS] * (len(contents) % 2 == 0)


@given(st.lists(wild, min_size=2, max_size=4).filter(lambda contents: len(contents) % 2 == 0))
def test_line_form_gives_the_ids_of_the_conversation(tokenizer, fast, contents):
    # A line holds its turns as they are, so here without special tokens inside.
    contents = [c.replace("<", "").replace("[", "").strip() for c in contents]
    tags = ["[INST]", "[/INST]"] * len(contents)
    line = " ".join(part for pair in zip(tags, contents, strict=False) for part in pair).rstrip(" ")
    ids = tokenizer.encode_conversation(chat(*contents)).tolist()
    assert fast(line)["input_ids"] == ids[1:-1]


def test_tags_show_when_special_tokens_are_kept(tokenizer):
    ids = tokenizer.encode_conversation(chat("a [INST] b", "c"))
    assert tokenizer.decode(ids, False) == "<bos>[INST]a [\u200bINST] b[/INST]c<eos>"
    assert tokenizer.decode(ids) == "a [\u200bINST] bc"


def test_assistant_mask_covers_the_replies_and_the_end(tokenizer, fast):
    messages = chat("the cat", "sat on", "why", "the mat", system="be")
    rendered = fast.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = [
        number
        for number, mark in zip(rendered["input_ids"], rendered["assistant_masks"], strict=True)
        if mark
    ]
    expected = [*tokenizer.encode("sat on"), INST, *tokenizer.encode("the mat"), EOS]
    assert marked == expected


def test_a_reply_can_be_continued(fast, tokenizer):
    text = fast.apply_chat_template(
        chat("why", "the c"), continue_final_message=True, tokenize=False
    )
    assert text == "<bos>[INST]why[/INST]the c"


BAD = [
    ([], False, "no user message"),
    (chat(system="x"), True, "no user message"),
    (
        [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}],
        False,
        "message 2 has no",
    ),
    ([{"content": "a"}], False, "message 1 has no known role"),
    ([{"role": "user"}], False, "message 1 has no text"),
    ([{"role": "user", "content": ["a"]}], False, "message 1 has no text"),
    ([{"role": "user", "content": None}], False, "message 1 has no text"),
    ([{"role": "assistant", "content": "a"}], False, "message 1 is out of turn"),
    ([*chat("a"), *chat("b")], False, "message 2 is out of turn"),
    ([*chat("a"), *chat(system="b")], False, "message 2 is out of turn"),
    ([*chat(system="b"), *chat("a", system="b")], False, "message 2 is out of turn"),
    (chat("a", "b"), True, "the last message is the assistant's already"),
]


@pytest.mark.parametrize(("messages", "add", "sentence"), BAD)
def test_impossible_conversations_are_refused_alike(tokenizer, fast, messages, add, sentence):
    from jinja2.exceptions import TemplateError

    with pytest.raises(UserError, match=sentence) as ours:
        tokenizer.encode_conversation(messages, add)
    if not messages:  # transformers refuses these before it looks at the template
        return
    with pytest.raises(TemplateError) as theirs:
        fast.apply_chat_template(messages, add_generation_prompt=add)
    assert str(theirs.value) == str(ours.value)


def test_lone_surrogates_in_a_conversation_are_refused(tokenizer):
    with pytest.raises(UserError, match="lone surrogate"):
        tokenizer.encode_conversation(chat("a\ud800"))
