"""A norm and its block that infer again as they did: told in one comparison, run in one call.

``run_norm`` looks at everything, hooks above all, and reads a dozen attributes of modules. In a
network whose caches are full of other things that takes a third as long as the block itself.
"""

from typing import NamedTuple
from weakref import finalize

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from se_kernels import direct


class Witness(NamedTuple):
    """What is compared, by identity, and the arguments of ``direct.run_norm`` that go with it; read
    by ``direct.run_norm_again``. It holds all but the block itself."""

    norm: nn.Module
    cls: type  # of the block
    pre: str
    handles: int  # every hook that is registered anywhere counts RemovableHandle up
    # as ``direct.unchanged`` takes them
    entries: tuple[tuple[dict, str, object], ...]
    pieces: tuple[tuple[nn.Module, type, dict], ...]
    fcs: tuple[Tensor | None, ...]
    rest: tuple


_of: dict[int, Witness] = {}  # by the id of the block, which takes its entry along when it goes


def run(norm: nn.Module, se: nn.Module, u: Tensor, residual: Tensor | None, pre: str):
    """y of an inference by modules that have not changed since ``note``; else None. Only where
    ``direct.is_open``."""
    known = _of.get(id(se))
    if known is None:
        return None
    return direct.run_norm_again(known, norm, se, pre, RemovableHandle.next_id, u, residual)


def note(norm: nn.Module, se: nn.Module, fcs: tuple[Tensor | None, ...], pre: str) -> None:
    """Of modules that have just been found plain, the norm in evaluation mode."""
    try:
        known = _witness_of(norm, se, fcs, pre)
    except KeyError:  # a replica of DataParallel keeps its parameters elsewhere
        return
    if id(se) not in _of:
        finalize(se, _of.pop, id(se), None)
    _of[id(se)] = known


def _witness_of(norm, se, fcs, pre) -> Witness:
    entries = []

    def see(holder: dict, *keys: str) -> list:
        """The values, which are compared from now on."""
        entries.extend((holder, key, holder[key]) for key in keys)
        return [holder[key] for key in keys]

    of_norm, of_se = norm.__dict__, se.__dict__
    _, eps, parameters, buffers = see(of_norm, "training", "eps", "_parameters", "_buffers")
    bn_weight, bn_bias = see(parameters, "weight", "bias")
    mean, var = see(buffers, "running_mean", "running_var")
    (children,) = see(of_se, "_modules")
    fc1, fc2 = see(children, "fc1", "fc2")
    for fc in (fc1, fc2):
        (parameters,) = see(fc.__dict__, "_parameters")
        see(parameters, "weight", "bias")
    squeeze, act, slope, gate, post = see(of_se, "squeeze", "act", "act_slope", "gate", "post")
    see(of_se, "backend", "_normed")
    pieces = [(module, type(module), module.__dict__) for module in (norm, fc1, fc2)]
    pieces.append((None, type(None), of_se))  # the block itself is not held
    rest = squeeze, act, slope, gate, post, bn_weight, bn_bias, mean, var, eps, pre
    handles = RemovableHandle.next_id
    return Witness(norm, type(se), pre, handles, tuple(entries), tuple(pieces), fcs, rest)
