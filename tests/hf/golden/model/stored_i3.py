"""Matrices of a model in 4 or 8 bits, for inference. Needs torch alone.

Groups of 32 numbers share a scale, x = scale k with whole |k| <= 7 or 127; in 4 bits byte j of a
group holds number j below and number j + 16 above. A matrix `name` becomes two buffers of its
module, `name_codes` (uint8) and `name_scales`, and is whole only while the module runs.
"""

import torch
from torch import Tensor, nn

GROUP = 32
LEVELS = {4: 7, 8: 127}
SMALLEST = 4096  # numbers of a matrix that is worth it


def numbers_of(codes: Tensor, scales: Tensor, shape: torch.Size, bits: int) -> Tensor:
    """Return the matrix of `shape`, in the type of its scales."""
    groups = codes.view(len(scales), -1)
    if bits == 4:
        groups = torch.cat((groups & 15, groups >> 4), 1)
    x = (groups.to(scales.dtype) - LEVELS[bits]) * scales[:, None]
    return x.flatten()[: shape.numel()].view(shape)


def nearest(x: Tensor, bits: int, shares: tuple[float, ...] = (1.0,)) -> tuple[Tensor, Tensor]:
    """Return the codes and bfloat16 scales of a float32 matrix, rounded to the nearest.

    `shares` of a group's largest number are tried as its range; the best for the group is taken.
    """
    levels = LEVELS[bits]
    flat = nn.functional.pad(x.flatten(), (0, -x.numel() % GROUP)).view(-1, GROUP)
    most = flat.abs().amax(1, keepdim=True)
    least = torch.full_like(most, torch.inf)
    scales, codes = torch.zeros_like(most), torch.zeros_like(flat)
    for share in shares:
        scale = (most * share / levels).bfloat16().float()
        code = torch.where(scale > 0, flat / scale, 0).round_().clamp_(-levels, levels)
        error = (code * scale - flat).square().sum(1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        scales, codes = torch.where(better, scale, scales), torch.where(better, code, codes)
    whole = (codes + levels).to(torch.uint8)
    if bits == 4:
        whole = whole[:, : GROUP // 2] | whole[:, GROUP // 2 :] << 4
    return whole.flatten(), scales.flatten().bfloat16()


def stored_names(network: nn.Module) -> list[tuple[nn.Module, str, str]]:
    """Return the matrices that are stored: module, name in it, name in the network."""
    return [
        (module, name, f"{path}.{name}" if path else name)
        for path, module in network.named_modules()
        for name, p in module.named_parameters(recurse=False)
        if p.ndim == 2 and p.numel() >= SMALLEST
    ]


def store_for_inference(network: nn.Module, bits: int) -> None:
    """Replace all large matrices of `network` by buffers, which a state dict then fills."""
    for module, name, _ in stored_names(network):
        shape, device = getattr(module, name).shape, getattr(module, name).device
        groups = -(-shape.numel() // GROUP)
        codes = torch.full((groups * GROUP * bits // 8,), 119 if bits == 4 else 127)
        delattr(module, name)
        module.register_buffer(f"{name}_codes", codes.to(device, torch.uint8))
        module.register_buffer(f"{name}_scales", torch.zeros(groups, device=device))
        _attend(module, name, shape, bits)
    for module in network.modules():
        module.is_stored = True  # type: ignore[assignment]  # nothing in it can be drawn anew


def _attend(module: nn.Module, name: str, shape: torch.Size, bits: int) -> None:
    """Give `module` its matrix while it runs."""

    def build(module: nn.Module, args: object) -> None:
        codes, scales = getattr(module, f"{name}_codes"), getattr(module, f"{name}_scales")
        setattr(module, name, numbers_of(codes, scales, shape, bits))

    def drop(module: nn.Module, args: object, output: object) -> None:
        delattr(module, name)

    module.register_forward_pre_hook(build)
    module.register_forward_hook(drop, always_call=True)
