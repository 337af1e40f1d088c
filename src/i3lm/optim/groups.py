"""Which parameter is trained by which rule, at which rate. The recipe's one place."""

from collections.abc import Iterable

from torch import Tensor

from i3lm.errors import UserError
from i3lm.model.stored import shape_of
from i3lm.optim.base import Optimizer, ParameterGroup
from i3lm.optim.elementwise import AdamW, Lion
from i3lm.optim.muon import Muon

# Peak rates of each optimizer: matrices of the layers, embeddings and head, vectors and the rest.
# Found by the runs in docs/log.md.
RATES = {
    "muon": {"matrix": 2.5e-3, "table": 2.5e-3, "vector": 1e-2},
    "adamw": {"matrix": 3e-3, "table": 3e-3, "vector": 3e-3},
    "lion": {"matrix": 3e-4, "table": 3e-4, "vector": 3e-4},
}
DECAYS = {"muon": 0.1, "adamw": 0.1, "lion": 1.0}  # of matrices
OPTIMIZERS = tuple(RATES)


def kind_of(name: str, parameter: Tensor) -> str:
    """Return "matrix", "table" (embeddings and the head's rows) or "vector" for a parameter."""
    if name.startswith(("model.embed_", "lm_head.A")):
        return "table"
    if len(shape_of(parameter)) == 2 and not name.endswith("recurrence.A"):
        return "matrix"
    return "vector"


def make_optimizer(
    name: str,
    parameters: Iterable[tuple[str, Tensor]],
    lr: float | None = None,
    state_bits: int = 32,
) -> Optimizer:
    """Build the optimizer `name` for named parameters, with states of 32, 8 or 4 bits a number.

    `lr` is the peak rate of the matrices; the other groups keep their ratio to it. Only matrices
    decay. Raises UserError for an unknown name or a rate that is not positive.
    """
    if name not in RATES:
        raise UserError(f"no optimizer is named {name!r}; choose one of {', '.join(RATES)}")
    rates = dict(RATES[name])
    if lr is not None:
        if not 0 < lr < 100:
            raise UserError(f"--lr {lr} must be above 0 and below 100, such as {rates['matrix']}")
        rates = {kind: rate * lr / rates["matrix"] for kind, rate in rates.items()}
    groups = {kind: ParameterGroup([], [], rate) for kind, rate in rates.items()}
    for parameter_name, parameter in parameters:
        group = groups[kind_of(parameter_name, parameter)]
        group.names.append(parameter_name)
        group.parameters.append(parameter)
    groups["matrix"].weight_decay = DECAYS[name]
    if name == "lion":
        for group in groups.values():
            group.betas = (0.95, 0.98)
        return Lion(list(groups.values()), state_bits)
    if name == "adamw":
        return AdamW(list(groups.values()), state_bits)
    groups["matrix"].betas = (0.95, 0.0)
    return Muon(groups["matrix"], [groups["table"], groups["vector"]], state_bits)
