"""What the whole suite starts from."""

import ctypes
import signal

import pytest
import torch  # the whole of it, before a test's `benchmarks` asks for less
from hypothesis import settings

# A busy machine is no failure. Here, since tests take the settings of the moment they are read.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# nohup and shells' background jobs ignore these, in every process started here, too; tests send
# them.
for _name, _action in (("SIGHUP", signal.SIG_DFL), ("SIGINT", signal.default_int_handler)):
    _number = getattr(signal, _name, None)
    if _number is not None and signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _action)


@pytest.fixture(params=["tiles", "vectors"])
def instructions(request, monkeypatch):
    """Each way in which the processor can multiply bfloat16: AMX tiles, or vectors."""
    from i3lm.native import tensor_library

    if tensor_library() is None:
        pytest.skip("no compiled kernels here")
    tensor_library().i3_attention_supported()  # looks for tiles
    tiles = ctypes.c_int.in_dll(tensor_library(), "i3_tiles")
    if request.param == "vectors":
        monkeypatch.setattr(tiles, "value", 0)
    elif not tiles.value:
        pytest.skip("no AMX tiles on this processor")
    return request.param


@pytest.fixture
def on_threads():
    """Sets how many threads torch works on, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A model that `i3lm train` made in this run of the tests, and that has learned something.

    Of a size of its own: all that is done with it takes a moment.
    """
    from i3lm.__main__ import main
    from i3lm.presets import PRESETS, Architecture, Preset

    sizes = Architecture(
        vocab_size=400, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=128, max_position_embeddings=48, rank=16, state_size=8,
    )  # fmt: skip
    place = tmp_path_factory.mktemp("trained")
    turns = [
        ("Who are you?", "I am i3, a small model."),
        ("Hello there", "Hello! Who are you?"),
        ("What do you like?", "I like cats and the sea."),
    ]
    lines = [f"[INST] {turns[i % 3][0]} [/INST] {turns[i % 3][1]} {i}\n" for i in range(600)]
    (place / "text.txt").write_text("".join(lines))
    words = "train --preset i3-test --batch-tokens 384 --steps 120 --threads 1 --quiet"
    places = ["--data", str(place / "text.txt"), "--out", str(place / "my-model")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "i3-test", Preset(sizes, 400, "small"))
        assert main([*words.split(), *places]) == 0
    return place / "my-model"
