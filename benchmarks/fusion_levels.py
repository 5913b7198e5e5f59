"""A model in several forms, whose times tell what SE costs and what it still costs when fused.

``unfused`` has SE blocks of separate operations. ``layer`` runs them fused, ``block`` with the norm
and the activation before and, where the block ends there, the shortcut and the ReLU after.
``identity`` has none: its convolutions, norms and everything else are the same, so it is the floor
of what SE costs.
"""

from collections.abc import Mapping

import numpy as np

from .cost_share import shares, spread
from .network import COMPILED
from .timing import paired_ratios

FUSED = ("layer", "block")
JUDGES = {
    "unfused": "unfused",
    **dict.fromkeys(FUSED, "unfused"),
    "identity": "identity",
}


def findings(seconds: Mapping[str, np.ndarray]) -> dict:
    """``ratios`` over unfused, with their spread, and ``shares``, by the fused form, or by the
    unfused one where there is none."""
    found: dict[str, dict] = {"ratios": {}, "shares": {}}
    for suffix in ("", COMPILED):
        times = {n: seconds[n + suffix] for n in JUDGES if n + suffix in seconds}
        if "unfused" not in times:
            continue
        unfused = times.pop("unfused")
        for name, values in times.items():
            pair = f"{name}{suffix}/unfused{suffix}"
            found["ratios"][pair] = spread(paired_ratios(values, unfused))
        fused = [name for name in FUSED if name in times]
        for name in (fused or ["unfused"]) if "identity" in times else ():
            found["shares"][name + suffix] = shares(unfused, times["identity"], times.get(name))
    return found
