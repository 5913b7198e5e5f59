"""A model in three forms, whose times tell what SE costs and what it still costs when fused.

``unfused`` has SE blocks of separate operations, ``fused`` runs them fused, ``identity`` has none:
its convolutions, norms and everything else are the same, so it is the floor of what SE costs.
"""

from collections.abc import Mapping

import numpy as np

from .network import COMPILED
from .shares import shares, spread
from .timing import paired_ratios

JUDGES = {"unfused": "unfused", "fused": "unfused", "identity": "identity"}


def findings(seconds: Mapping[str, np.ndarray]) -> dict:
    """``ratios`` over unfused, with their spread, and ``shares``, both by form."""
    found = {"ratios": {}, "shares": {}}
    for form, suffix in (("eager", ""), ("compiled", COMPILED)):
        times = {n: seconds[n + suffix] for n in JUDGES if n + suffix in seconds}
        if not times:
            continue
        unfused = times.pop("unfused")
        for name, values in times.items():
            pair = f"{name}{suffix}/unfused{suffix}"
            found["ratios"][pair] = spread(paired_ratios(values, unfused))
        found["shares"][form] = shares(unfused, times["identity"], times.get("fused"))
    return found
