"""Whether a fused module is still as it was when it was last looked at, told in a few comparisons.

``run.can_run`` looks at everything, hooks above all, which takes half as long as the block in a
network whose caches are full of other things.
"""

from typing import NamedTuple

from torch import nn
from torch.utils.hooks import RemovableHandle

from se_kernels import direct
from se_kernels.fusion.run import Plan, child


class Witness(NamedTuple):
    """What is compared, by identity. Made of a module that ``can_run`` has just passed."""

    children: dict  # of the module; a replica of DataParallel takes the witness along, not these
    handles: int  # every hook that is registered anywhere counts RemovableHandle up
    # as ``direct.unchanged`` takes them
    entries: tuple[tuple[dict, str, object], ...]
    pieces: tuple[tuple[nn.Module, type, dict], ...]
    fc1: dict  # parameters
    fc2: dict

    def holds(self, module: nn.Module) -> bool:
        """Only where ``direct.is_open``."""
        return (
            module.__dict__["_modules"] is self.children
            and RemovableHandle.next_id == self.handles
            and direct.unchanged(self.entries, self.pieces)
        )


def witness_of(module: nn.Module, plan: Plan) -> Witness | None:
    """None for a block whose FCs keep their weights elsewhere than among their parameters."""
    entries, pieces = [], []

    def note(holder, parts):
        for piece in parts:
            found = holder.__dict__["_modules"][piece.name]
            state = found.__dict__
            entries.append((holder.__dict__["_modules"], piece.name, found))
            keys = [name for name, _ in piece.settings]
            if piece.is_fc:
                keys += ["_parameters", "padding"]  # the weight's shape tells the rest
            entries.extend((state, key, state[key]) for key in keys if key in state)
            pieces.append((found, piece.cls, state))
            note(found, piece.inside)

    state = module.__dict__
    entries.extend((state, name, state[name]) for name, _ in plan.settings if name in state)
    note(module, plan.pieces)
    fc1, fc2 = (child(module, path).__dict__["_parameters"] for path in (plan.fc1, plan.fc2))
    if not ("weight" in fc1 and "bias" in fc1 and "weight" in fc2 and "bias" in fc2):
        return None
    children, handles = state["_modules"], RemovableHandle.next_id
    return Witness(children, handles, tuple(entries), tuple(pieces), fc1, fc2)
