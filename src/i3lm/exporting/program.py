"""The program of an ExecuTorch folder: both graphs as methods of one file, for XNNPACK."""

from pathlib import Path

import torch

from i3lm.errors import UserError
from i3lm.exported import EXECUTORCH_INSTALL, quiet
from i3lm.exporting.graphs import graphs
from i3lm.model.network import I3Network


def write_program(network: I3Network, path: Path) -> None:
    """Write the methods `prefill` and `decode`, for one text (B = 1), to `path`.

    XNNPACK computes what it can, the portable kernels the rest. The runtime reserves memory for a
    whole window. Lowering takes 15 to 20 s a layer. UserError where executorch is missing, or for a
    window too short to be free in.
    """
    window = network.config.max_position_embeddings
    if window < 3:
        raise UserError(f"a window of {window} tokens is too short for ExecuTorch")
    try:
        with quiet(), torch.no_grad():
            path.write_bytes(_lowered(network, window))
    except ImportError as error:
        raise UserError(f"no executorch ({error}): {EXECUTORCH_INSTALL}") from None


def _lowered(network: I3Network, window: int) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    programs = {
        name: torch.export.export(module, example, dynamic_shapes=shapes)
        for name, module, example, shapes in graphs(network, None, window)
    }
    lowered = to_edge_transform_and_lower(programs, partitioner=[XnnpackPartitioner()])
    return lowered.to_executorch().buffer
