"""Which of several processes this one is, as torchrun says in the environment."""

import os
import socket
from dataclasses import dataclass

from i3lm.errors import UserError


@dataclass(frozen=True)
class Launch:
    """A process among `size`; `local` counts those of its machine, `machine` the machines.

    https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    machine: int = 0
    address: str = ""
    port: int = 0
    restarts: int = 0
    agent: bool = False  # torchrun itself keeps the store by which processes meet

    @property
    def name(self) -> str:
        """What messages call this process."""
        return f"process {self.rank} on {socket.gethostname()}"


def launch() -> Launch:
    """Read the environment; a lone process where nothing was launched.

    UserError for an environment that makes no sense.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Launch()
    names = {
        "rank": "RANK",
        "size": "WORLD_SIZE",
        "local_rank": "LOCAL_RANK",
        "local_size": "LOCAL_WORLD_SIZE",
        "machine": "GROUP_RANK",
        "port": "MASTER_PORT",
        "restarts": "TORCHELASTIC_RESTART_COUNT",
    }
    try:
        numbers = {k: int(os.environ[v]) for k, v in names.items() if v in os.environ}
    except ValueError as error:
        raise UserError(f"RANK, WORLD_SIZE, ...: {error}; start it with torchrun") from None
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    found = Launch(address=os.environ.get("MASTER_ADDR", ""), agent=agent, **numbers)
    if not 0 <= found.rank < found.size or found.local_rank >= found.local_size:
        raise UserError(
            f"process {found.rank} of {found.size} cannot be (RANK, WORLD_SIZE, LOCAL_RANK, "
            "LOCAL_WORLD_SIZE); start it with torchrun"
        )
    if found.size > 1 and not (found.address and found.port):
        raise UserError("WORLD_SIZE without MASTER_ADDR and MASTER_PORT; start it with torchrun")
    return found
