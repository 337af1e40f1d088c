"""Model folders: what training writes, and what transformers and i3lm load."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from i3lm.errors import UserError
from i3lm.files import read_small, write_atomic
from i3lm.model.card_i3 import model_card
from i3lm.model.network import I3Network
from i3lm.model.stored import GROUP, StoredMatrix, stored_in
from i3lm.model.stored_i3 import store_for_inference
from i3lm.presets import TEMPERATURE, TOP_P, Architecture, architecture_class
from i3lm.tensorfile import Deferred, read_tensors, write_tensors
from i3lm.tensorheader import Entry, read_header, weight_files
from i3lm.tokenizer import BOS, EOS, INST, PAD, ChunkTokenizer

if TYPE_CHECKING:
    from i3lm.chatting import Chat
    from i3lm.model.decoding import CompiledStep

CODE = (
    "cache_i3.py",
    "card_i3.py",
    "configuration_i3.py",
    "generation_i3.py",
    "layers_i3.py",
    "modeling_i3.py",
    "ops_i3.py",
    "stored_i3.py",
    "window_i3.py",
)
AUTO_MAP = {
    "AutoConfig": "configuration_i3.I3Config",
    "AutoModel": "modeling_i3.I3Model",
    "AutoModelForCausalLM": "modeling_i3.I3ForCausalLM",
}
GENERATION = {
    "bos_token_id": BOS,
    "eos_token_id": [EOS, INST],  # a reply ends with the text, or where the user's turn begins
    "pad_token_id": PAD,
    "do_sample": True,
    "temperature": TEMPERATURE,
    "top_p": TOP_P,
}


@dataclass(frozen=True)
class Loaded:
    """A model in memory: the network in evaluation mode, its tokenizer and sizes."""

    network: I3Network
    tokenizer: ChunkTokenizer
    architecture: Architecture
    weight_bits: int = 32  # of a number of the matrices in the folder; in memory they are float32
    step: "CompiledStep | None" = None  # of weights that nobody changes: `generation.settled`

    def chat(self, messages: str | Sequence[dict[str, str]], **settings: Any) -> str:
        """Return the model's answer; `i3lm.chat` says what `messages` and `settings` may be."""
        from i3lm.chatting import chat

        return chat(self, messages, **settings)

    def conversation(self, **settings: Any) -> "Chat":
        """Return a conversation that remembers its turns: `i3lm.Chat` with these settings."""
        from i3lm.chatting import Chat

        return Chat(self, **settings)

    def generate(self, prompt: str = "", **settings: Any) -> str:
        """Return the text that follows `prompt`; `i3lm.generate` says what `settings` may be."""
        from i3lm.generation import generate

        return generate(self, prompt, **settings)


def save_folder(
    folder: str | Path,
    network: I3Network,
    tokenizer: ChunkTokenizer,
    run: dict[str, Any] | None = None,
    stored: Mapping[str, StoredMatrix] | None = None,
    weights: Mapping[str, torch.Tensor | Deferred] | None = None,
) -> None:
    """Write a complete model folder: config, weights, tokenizer, generation config, code, card.

    Each file is written whole or not at all, the weights after everything they need. `run` are the
    figures of the training run, for the card. `stored` are matrices to be written in the few bits
    that they have there, `weights` all parameters where the network has only a part of each. Needs
    no transformers.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = network.config
    state: dict[str, torch.Tensor | Deferred] = {}
    for name, parameter in network.named_parameters():
        if stored and name in stored:
            state[f"{name}_codes"] = stored[name].codes
            state[f"{name}_scales"] = stored[name].scales
        else:
            state[name] = weights[name] if weights else _whole(parameter)
    config = {
        "architectures": ["I3ForCausalLM"],
        "auto_map": AUTO_MAP,
        "model_type": "i3",
        "dtype": str(next(iter(network.parameters())).dtype).removeprefix("torch."),
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "tie_word_embeddings": False,
        **dataclasses.asdict(sizes),
    }
    if stored:
        config["weight_bits"] = next(iter(stored.values())).bits
    source = Path(__file__).parent / "model"
    for name in CODE:
        write_atomic(folder / name, (source / name).read_bytes())
    tokenizer.save(folder, model_max_length=sizes.max_position_embeddings)
    write_atomic(folder / "generation_config.json", _json(GENERATION))
    write_atomic(folder / "config.json", _json(config))
    metadata = {"format": "pt", "i3": json.dumps(dataclasses.asdict(sizes))}
    write_tensors(folder / "model.safetensors", state, metadata)
    card = model_card(config, sizes.parameters, run)
    # The name of a file that it tells may be bytes that are no text.
    write_atomic(folder / "README.md", card.encode(errors="replace"))


def _whole(parameter: torch.Tensor) -> torch.Tensor | Deferred:
    stored = stored_in(parameter)
    return Deferred(stored.read, stored.shape, torch.float32) if stored else parameter


def load_folder(folder: str | Path, device: str = "cpu") -> Loaded:
    """Load a model folder with torch alone.

    UserError, in one line, for anything that is not a sound i3 model folder.
    """
    folder = Path(folder)
    architecture, weight_bits = _architecture(folder)
    tokenizer = ChunkTokenizer.load(folder)
    rows = architecture.used_vocab_size or architecture.vocab_size
    if len(tokenizer) != rows:
        raise UserError(
            f"{folder}: its tokenizer has {len(tokenizer):,} tokens and its model {rows:,}; "
            "copy both from one run"
        )
    path = folder / "model.safetensors"
    try:
        headers = {}
        for path in weight_files(folder):
            headers[path] = read_header(path)
        entries = {n: e for header in headers.values() for n, e in header.tensors.items()}
        own = headers[path].metadata.get("i3")  # not in files that others wrote
        network = _network_for(entries, architecture, weight_bits)
        if network is None or (own and json.loads(own) != dataclasses.asdict(architecture)):
            raise UserError(f"{path} does not fit its config.json; copy both from one run")
        state: dict[str, torch.Tensor] = {}
        for path, header in headers.items():
            state |= read_tensors(path, header)
    except FileNotFoundError:
        if (folder / "decode.onnx").exists() or (folder / "model.pte").exists():
            raise UserError(
                f"{folder} holds an export; it runs by i3lm chat and i3lm generate alone"
            ) from None
        raise UserError(f"{folder} has no {path.name}; copy the whole folder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); copy it anew") from None
    whole = {name: _matrix(state, name, p, weight_bits) for name, p in network.named_parameters()}
    network.load_state_dict(whole, assign=True)
    try:
        network.to(device)
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {device} is not to be had here; use --device cpu") from None
    return Loaded(network.eval(), tokenizer, architecture, weight_bits)


def _matrix(
    state: dict[str, torch.Tensor], name: str, parameter: torch.Tensor, bits: int
) -> torch.Tensor:
    """Take a parameter's numbers out of `state`, in float32."""
    if name in state:
        return state.pop(name).float()
    codes, scales = state.pop(f"{name}_codes"), state.pop(f"{name}_scales").bfloat16()
    return StoredMatrix(codes, scales, parameter.shape, bits).read()


def _network_for(
    entries: dict[str, Entry], architecture: Architecture, bits: int
) -> I3Network | None:
    """Return a network without memory that a file's tensors fit, None if they do not."""
    # The total first: sizes from a damaged file may be too large to build even without memory.
    packed = 2 if bits == 4 else 1
    numbers = sum(
        entry.numbers * (packed if name.endswith("_codes") else 1)
        for name, entry in entries.items()
        if not name.endswith("_scales")
    )
    if not 0 <= numbers - architecture.parameters < GROUP * len(entries):
        return None
    with torch.device("meta"), _WithoutInitialisation():
        network = I3Network(architecture)
        pattern = network if bits == 32 else I3Network(architecture)
    if bits != 32:
        store_for_inference(pattern, bits)
    wanted = {n: (t.is_floating_point(), (*t.shape,)) for n, t in pattern.state_dict().items()}
    found = {n: ("F" in entry.dtype, entry.shape) for n, entry in entries.items()}
    return network if wanted == found else None


class _WithoutInitialisation(TorchFunctionMode):
    """Draws no parameters: on tensors without memory that would import torch's compiler, 1.3 s."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _architecture(folder: Path) -> tuple[Architecture, int]:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name a model folder that i3lm train wrote")
    path = folder / "config.json"
    try:
        config = json.loads(read_small(path))
        if config["model_type"] != "i3":
            raise UserError(
                f"{folder} holds a model of type {config['model_type']!r}, not i3; "
                "name one that i3lm train wrote"
            )
        fields = [field for field in dataclasses.fields(Architecture) if field.name in config]
        for field in fields:
            value = config[field.name]
            if isinstance(value, bool) or not isinstance(value, field.type):  # type: ignore[arg-type]
                raise TypeError(f"{field.name} is {value!r}")
        bits = config.get("weight_bits", 32)
        if bits not in (32, 8, 4):
            raise ValueError(f"weight_bits is {bits!r}")
        kind = architecture_class(config)
        return kind(**{field.name: config[field.name] for field in fields}), bits
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not a model folder, it has no config.json; name one that i3lm train wrote"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); copy it anew") from None


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
