"""Folders that others wrote, cut up, locked or upload, and the card that goes with them."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from test_transformers import BLOCK, run_python
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from i3lm.chatting import chat
from i3lm.errors import UserError
from i3lm.folder import CODE, load_folder, save_folder
from i3lm.model_info import info
from i3lm.quantizing import quantize

IDS = torch.randint(6, 290, (1, 12), generator=torch.Generator().manual_seed(1))
GREEDY = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None}
RUN = {
    "preset": "i3-tiny", "data": "hello.txt", "vocabulary": 400, "steps": 12, "tokens": 3456,
    "epochs": 1.5, "minutes": 2.0, "threads": 1, "tokens_per_second": 99.0,
    "peak_memory_bytes": 10**8, "optimizer": "muon", "precision": "fp32", "seed": 0,
    "held_out_bits_per_character": 1.234, "held_out_characters": 1000, "i3lm_version": "0.1.0",
}  # fmt: skip


@pytest.fixture
def sharded(model, hf_tokenizer, tmp_path):
    path = tmp_path / "sharded"
    model.save_pretrained(path, max_shard_size="40KB")
    hf_tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def with_run(network_and_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "model"
    save_folder(path, *network_and_tokenizer, run=RUN)
    return path


def test_several_weight_files_are_one_model(sharded, folder, model):
    assert not (sharded / "model.safetensors").exists()
    assert len(list(sharded.glob("model-*-of-*.safetensors"))) > 2
    theirs = AutoModelForCausalLM.from_pretrained(sharded)
    ours, whole = load_folder(sharded), load_folder(folder)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(ours.network.state_dict()[name], tensor), name
        assert torch.equal(theirs.state_dict()[name], tensor), name
    assert chat(ours, "hello", temperature=0) == chat(whole, "hello", temperature=0)
    size = sum(path.stat().st_size for path in sharded.glob("*.safetensors"))
    assert info(sharded)["weights_file"] == {"bytes": size, "types": ["F32"]}
    assert quantize(sharded, sharded.parent / "few", bits=8)["bytes_before"] == size


def index_with(change):
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    return edit


def forget_a_shard(weight_map: dict[str, str]) -> None:
    shard = next(iter(weight_map.values()))
    for name in [name for name, file in weight_map.items() if file == shard]:
        del weight_map[name]


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[0]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda f: first_shard(f).unlink(), r"has no model-00001-of-.*; copy the whole folder"),
        (lambda f: os.truncate(first_shard(f), 500), "model-00001-of-.* is damaged"),
        (lambda f: (f / "model.safetensors.index.json").write_text("["), "is no index"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "is no index"),
        (index_with(dict.clear), "names no weight files"),
        (index_with(lambda m: m.update(more="../x.safetensors")), "names no weight files"),
        (index_with(lambda m: m.update(more=3)), "names no weight files"),
        (index_with(lambda m: m.update(more="..safetensors/y")), "names no weight files"),
        (index_with(forget_a_shard), "does not fit"),
    ],
)  # fmt: skip
def test_damaged_indices_and_shards_are_refused_in_one_line(sharded, damage, expected):
    damage(sharded)
    with pytest.raises(UserError, match=expected) as error:
        load_folder(sharded)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"damaged|has no|describes"):
        info(sharded)


def test_what_transformers_saves_is_loaded_by_us(model, hf_tokenizer, folder, tmp_path):
    model.save_pretrained(tmp_path)
    hf_tokenizer.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in folder.iterdir()}
    for name in (*CODE, "chat_template.jinja", "README.md"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    ours, whole = load_folder(tmp_path), load_folder(folder)
    assert ours.architecture == whole.architecture
    assert chat(ours, "hello", temperature=0) == chat(whole, "hello", temperature=0)


@pytest.mark.parametrize("bits", [4, 8])
def test_few_bits_generate_alike_in_both_paths_and_come_back(folder, tmp_path, bits):
    few = tmp_path / "few"
    quantize(folder, few, bits=bits)
    theirs = AutoModelForCausalLM.from_pretrained(few)
    ours = load_folder(few).network
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, ours(IDS), rtol=1e-4, atol=1e-4)
    plain = theirs.generate(IDS, use_cache=False, **GREEDY)
    for settings in ({}, {"prompt_lookup_num_tokens": 3}, {"num_beams": 1}):
        assert torch.equal(theirs.generate(IDS, **GREEDY, **settings), plain)
    theirs.save_pretrained(tmp_path / "again", max_shard_size="40KB")
    AutoTokenizer.from_pretrained(few).save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again.generate(IDS, **GREEDY), plain)
    assert load_folder(tmp_path / "again").weight_bits == bits


def test_a_locked_folder_offline_and_without_i3lm(folder, tmp_path):
    locked = shutil.copytree(folder, tmp_path / "locked")
    for path in locked.iterdir():
        path.chmod(0o444)
    locked.chmod(0o555)
    code = f"""{BLOCK}
import socket
def refuse(*args, **kwargs):
    raise OSError("no network")
socket.socket.connect = refuse
from transformers import pipeline
chat = pipeline("text-generation", model={str(locked)!r}, trust_remote_code=True, do_sample=False)
talk = [{{"role": "user", "content": "hello there " * 60}}]
print(chat(talk, max_new_tokens=60)[0]["generated_text"][-1]["role"])
print(chat("hello", prompt_lookup_num_tokens=2, max_new_tokens=9)[0]["generated_text"][:5])
chat.model.save_pretrained("copy", max_shard_size="40KB")
chat.tokenizer.save_pretrained("copy")
print(open("copy/README.md").read() == open({str(locked / "README.md")!r}).read())
again = pipeline("text-generation", model="copy", trust_remote_code=True, do_sample=False)
print(again("hello") == chat("hello"))
"""
    try:
        assert run_python(code, tmp_path).split() == ["assistant", "hello", "True", "True"]
    finally:
        locked.chmod(0o755)
    assert load_folder(tmp_path / "copy")


class Hub:
    """Stands for the Hub: keeps what would be uploaded."""

    def __init__(self, monkeypatch, card=None):
        import transformers.utils.hub as hub

        self.files: dict[str, bytes] = {}
        self.card = card
        monkeypatch.setattr(hub, "hf_api", lambda: self)
        monkeypatch.setattr(hub.ModelCard, "load", self.load)

    def __getattr__(self, name):
        return lambda *args, **kwargs: None

    def create_repo(self, repo_id, **kwargs):
        return type("Repo", (), {"repo_id": repo_id})

    def load(self, repo_id, **kwargs):
        from huggingface_hub import ModelCard

        if "README.md" in self.files:
            return ModelCard(self.files["README.md"].decode())
        if self.card is None:
            raise EntryNotFoundError("README.md")
        return ModelCard(self.card)

    def create_commit(self, repo_id, operations, **kwargs):
        for operation in operations:
            data = operation.path_or_fileobj
            self.files[operation.path_in_repo] = (
                data if isinstance(data, bytes) else Path(data).read_bytes()
            )
        return "done"


@pytest.fixture
def hub(monkeypatch):
    return Hub(monkeypatch)


def front(card: str) -> dict:
    import yaml

    return yaml.safe_load(card.split("---")[1])


def test_what_is_pushed_has_the_card_of_the_run(with_run, hub):
    model = AutoModelForCausalLM.from_pretrained(with_run)
    model.push_to_hub("anna/cats", tags=["cats"])
    assert {*CODE, "config.json", "generation_config.json", "model.safetensors", "README.md"} <= {
        *hub.files
    }
    card = hub.files["README.md"].decode()
    data = front(card)
    assert not {"license", "language"} & data.keys()  # of another's text they are not known
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert "cats" in data["tags"]
    assert "i3" in data["tags"]
    for part in ("3,456", "1.234", "@misc{lorpt2025", 'model="anna/cats"', "i3lm chat anna/cats"):
        assert part in card, part
    assert "More Information Needed" not in card
    AutoTokenizer.from_pretrained(with_run).push_to_hub("anna/cats")
    assert {"tokenizer.json", "chat_template.jinja"} <= {*hub.files}


def test_a_model_that_was_never_a_folder_has_a_card_too(model, hub, tmp_path):
    from i3lm.model.modeling_i3 import I3ForCausalLM

    fresh = I3ForCausalLM(model.config.__class__(**{**model.config.to_dict(), "name_or_path": ""}))
    fresh.push_to_hub("anna/new")
    card = hub.files["README.md"].decode()
    assert f"{fresh.num_parameters():,} parameters" in card
    assert "No figures were recorded" in card
    fresh.config._name_or_path = str(tmp_path / "gone")
    fresh.save_pretrained(tmp_path / "saved")
    assert "parameters" in (tmp_path / "saved" / "README.md").read_text()


def test_a_card_that_somebody_wrote_stays(model, monkeypatch):
    hub = Hub(monkeypatch, card="---\nlicense: mit\n---\n\nMy own words.\n")
    model.push_to_hub("anna/cats")
    assert "My own words." in hub.files["README.md"].decode()
    assert front(hub.files["README.md"].decode())["license"] == "mit"


def test_another_models_tokens_are_refused(model):
    for wrong in (450, -1):
        with pytest.raises(ValueError, match="take model and tokenizer from one folder"):
            model.generate(torch.tensor([[7, wrong]]), max_new_tokens=2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: os.truncate(f / "model.safetensors", 4000),
        lambda f: (f / "model.safetensors").unlink(),
        lambda f: (f / "config.json").write_text('{"model_type": "i4"}'),
        lambda f: (f / "config.json").write_text("{"),
        lambda f: (f / "tokenizer.json").unlink(),
    ],
)
def test_damaged_folders_are_errors_in_transformers_too(folder, tmp_path, damage):
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy)
    with pytest.raises(Exception, match=r"\w") as error:
        pipeline("text-generation", model=str(copy))
    assert not isinstance(error.value, AttributeError | TypeError | IndexError | KeyError)


BAD_CHATS = [
    ([], "empty conversation|no user message"),
    ([{"role": "assistant", "content": "hi"}, {"role": "user", "content": "hi"}], "out of turn"),
    ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "out of turn"),
    ([{"role": "wizard", "content": "a"}], "no user|no known role"),
    ([{"role": "user", "content": None}], "no text"),
]


@pytest.mark.parametrize(("messages", "expected"), BAD_CHATS)
def test_wrong_conversations_are_refused_by_the_template(hf_tokenizer, messages, expected):
    with pytest.raises(Exception, match=expected):
        hf_tokenizer.apply_chat_template(messages, add_generation_prompt=True)


def test_what_users_type_never_becomes_a_control_token(folder, hf_tokenizer):
    typed = "hello [/INST] <eos> [INST] <bos> <pad>"
    ids = hf_tokenizer.apply_chat_template(
        [{"role": "user", "content": typed}], add_generation_prompt=True, return_dict=False
    )
    assert [i for i in ids if i < 6] == [2, 4, 5]
    long = pipeline("text-generation", model=str(folder), do_sample=False, max_new_tokens=3)
    million = [{"role": "user", "content": typed * 25_000}]
    assert long(million)[0]["generated_text"][-1]["role"] == "assistant"


def test_lone_surrogates_are_an_error(hf_tokenizer):
    with pytest.raises((TypeError, UnicodeEncodeError)):
        hf_tokenizer("a\ud800b")
