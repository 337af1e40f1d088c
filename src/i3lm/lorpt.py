"""LoRPt, low-rank pretraining, for anybody's model.

Replace dense linear layers by pairs of factors (FlameF0X, 2025,
github.com/FlameF0X/Low-Rank-Pretraining), train, and merge the factors back to dense layers.
"""

import difflib
import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from i3lm.errors import UserError
from i3lm.model.layers_i3 import LoRPtLinear

__all__ = ["LoRPtLinear", "Report", "Row", "from_linear", "merge", "replace", "to_linear"]


@dataclass(frozen=True)
class Row:
    """One replaced layer."""

    name: str
    out_features: int
    in_features: int
    rank: int
    before: int  # parameters
    after: int
    energy: float  # share of the squared singular values that the factors keep; NaN if drawn anew


@dataclass
class Report:
    """What `replace` did. `str(report)` is a table."""

    rows: list[Row] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)  # layers that matched and stayed, and why

    @property
    def saved(self) -> int:
        """Parameters saved in all; as many multiply-adds a token are saved in a forward pass."""
        return sum(row.before - row.after for row in self.rows)

    def __str__(self) -> str:
        lines = [
            f"{'layer':40} {'shape':>13} {'rank':>5} {'before':>11} {'after':>11} {'energy':>7}"
        ]
        for row in self.rows:
            shape = f"{row.out_features} x {row.in_features}"
            energy = "new" if row.energy != row.energy else f"{row.energy:.1%}"
            lines.append(
                f"{row.name:40} {shape:>13} {row.rank:>5} {row.before:>11,} {row.after:>11,} "
                f"{energy:>7}"
            )
        lines += [f"{name:40} stays dense: {reason}" for name, reason in self.kept.items()]
        total = sum(row.before for row in self.rows)
        share = f" of {total:,} ({self.saved / total:.0%})" if total else ""
        lines.append(f"{len(self.rows)} layers replaced, {self.saved:,} parameters saved{share}")
        return "\n".join(lines)


def replace(
    module: nn.Module,
    ranks: int | Mapping[str, int | None],
    *,
    init: str = "spectral",
    force: bool = False,
) -> Report:
    """Replace the linear layers of `module` by LoRPt pairs, in place.

    ranks: one rank for all, or ranks by pattern of the layer's qualified name (`fnmatch` style,
    case-sensitive: "*.mlp.*"); the first match counts, None leaves a layer dense. `nn.Linear` and
    transformers' `Conv1D` are replaced. init: "spectral", the best approximation of the dense
    weight (truncated SVD, balanced), or "orthogonal", drawn anew for training from scratch.
    A layer stays when its weight is shared with another module, or when the rank would not save
    parameters and `force` is not set. Device, dtype, training mode and `requires_grad` are kept.

    UserError: a pattern that matches no layer, a rank that is impossible, an unknown `init`.
    """
    if init not in ("spectral", "orthogonal"):
        raise UserError(f"init {init!r} must be 'spectral' or 'orthogonal'")
    patterns = {"*": ranks} if isinstance(ranks, int) else dict(ranks)
    layers = dict(_linear_layers(module))
    _check_patterns(patterns, list(layers))
    chosen = []
    for name, layer in layers.items():
        pattern = next((p for p in patterns if fnmatch.fnmatchcase(name, p)), None)
        rank = None if pattern is None else patterns[pattern]
        if rank is not None:
            _check_rank(rank, layer, f" for {name}")
            chosen.append((name, layer, rank))
    report = Report()
    for name, layer, rank in chosen:  # all is checked: nothing stops half-way
        out_features, in_features = dense_weight(layer).shape
        before, after = out_features * in_features, rank * (out_features + in_features)
        if _is_shared(module, layer):
            report.kept[name] = "its weight is shared with another layer"
        elif after >= before and not force:
            report.kept[name] = f"rank {rank} would not save parameters"
        else:
            pair, energy = _pair(layer, rank, spectral=init == "spectral")
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, pair)
            report.rows.append(Row(name, out_features, in_features, rank, before, after, energy))
    return report


def from_linear(linear: nn.Module, rank: int) -> LoRPtLinear:
    """Return the LoRPt pair nearest to a dense layer: the best approximation of its rank.

    By Eckart and Young (1936) the squared error of the product is the sum of the squared singular
    values that are left out. UserError for a rank that is impossible.
    """
    _check_rank(rank, linear)
    return _pair(linear, rank, spectral=True)[0]


def to_linear(pair: LoRPtLinear) -> nn.Linear:
    """Return the dense layer that a pair stands for; the product is formed in float64."""
    has_bias = pair.bias is not None
    with torch.device("meta"):
        linear = nn.Linear(pair.in_features, pair.out_features, bias=has_bias)
    weight = (pair.A.detach().double() @ pair.B.detach().double()).to(pair.A.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=pair.A.requires_grad)
    if pair.bias is not None:
        bias = pair.bias.detach().clone()
        linear.bias = nn.Parameter(bias, requires_grad=pair.bias.requires_grad)
    return linear.train(pair.training)


def merge(module: nn.Module) -> int:
    """Turn every LoRPt pair inside `module` back into `nn.Linear`, in place; return how many."""
    pairs = [(n, m) for n, m in module.named_modules() if n and isinstance(m, LoRPtLinear)]
    for name, pair in pairs:
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, to_linear(pair))
    return len(pairs)


def dense_weight(layer: nn.Module) -> Tensor:
    """Return the weight of a linear layer as (out, in). Conv1D stores it the other way round."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight if isinstance(layer, nn.Linear) else weight.t()


def _linear_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, layer in module.named_modules():
        # by name, so that transformers need not be imported
        if name and (type(layer) is nn.Linear or type(layer).__name__ == "Conv1D"):
            yield name, layer


def _check_patterns(patterns: Mapping[str, int | None], names: list[str]) -> None:
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern.strip("*."), names, n=3, cutoff=0.3)
            hint = f"; near: {', '.join(near)}" if near else ""
            raise UserError(f"no linear layer matches {pattern!r}{hint}")


def _check_rank(rank: int, layer: nn.Module, where: str = "") -> None:
    shape = dense_weight(layer).shape
    if not 1 <= rank <= min(shape):
        raise UserError(
            f"rank {rank} is impossible{where} ({shape[0]} x {shape[1]}); choose 1 to {min(shape)}"
        )


def _is_shared(module: nn.Module, layer: nn.Module) -> bool:
    owners = {
        id(owner)
        for owner in module.modules()
        for parameter in owner.parameters(recurse=False)
        if parameter is layer.weight
    }
    return len(owners) > 1


@torch.no_grad()
def _pair(layer: nn.Module, rank: int, spectral: bool) -> tuple[LoRPtLinear, float]:
    weight = dense_weight(layer).detach()
    bias = layer.bias
    pair = LoRPtLinear(weight.shape[1], weight.shape[0], rank, bias is not None)
    energy = float("nan")
    if spectral:
        u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
        root = s[:rank].sqrt()
        pair.A.copy_(u[:, :rank] * root)
        pair.B.copy_(root[:, None] * v[:rank])
        energy = float((s[:rank] ** 2).sum() / (s**2).sum().clamp(min=1e-300))
    pair.to(device=weight.device, dtype=weight.dtype)
    if isinstance(bias, Tensor) and pair.bias is not None:
        pair.bias.copy_(bias)
        pair.bias.requires_grad_(bias.requires_grad)
    trained = layer.weight
    assert isinstance(trained, Tensor)
    pair.A.requires_grad_(trained.requires_grad)
    pair.B.requires_grad_(trained.requires_grad)
    return pair.train(layer.training), energy
