"""SE's share of a network's time before and after fusing, and what is left of it.

Shares are small differences of noisy times, so they are taken within a round, where a change of the
machine's speed cancels, and each comes with its spread. Of one round's times u (unfused), f (fused)
and i (identity in the place of the SE modules):

    before = (u - i) / u      after = (f - i) / u      left = median(after) / median(before)

``left`` is a ratio of medians: a round's own after/before divides by what may be near zero. Its
interval, and that of each median, is the percentile bootstrap over rounds; of fewer than
``FEWEST`` rounds there is none. Where a resampled ``before`` is not above zero, SE's cost was not
told from nothing and ``left`` is None.
"""

import numpy as np

from .timing import paired_ratios

RESAMPLED = 2000
INTERVAL = (2.5, 97.5)  # percentiles
FEWEST = 6  # rounds: all of 5 lie on one side of the true median in 2 / 2^5 of cases, over 5 %


def shares(u: np.ndarray, i: np.ndarray, f: np.ndarray | None = None) -> dict:
    """``before``, and with ``f`` also ``after`` and ``left``, from seconds per round."""
    identity = paired_ratios(i, u)
    before = 1 - identity
    if f is None:
        return {"before": spread(before)}
    after = paired_ratios(f, u) - identity
    return {"before": spread(before), "after": spread(after), "left": left(before, after)}


def left(before: np.ndarray, after: np.ndarray) -> dict[str, float | None] | None:
    """``p50`` and its 95 % interval, ``low`` to ``high``; None where SE's cost is lost in noise."""
    below, above = _medians(before, after)
    if below.min() <= 0 or np.median(before) <= 0:
        return None
    p50 = float(np.median(after) / np.median(before))
    return {"p50": p50, **_interval(above / below, len(before))}


def spread(values: np.ndarray) -> dict[str, float | None]:
    """p20, p50 and p80 over the rounds, and the 95 % interval of p50, ``low`` to ``high``."""
    p20, p50, p80 = map(float, np.percentile(values, [20, 50, 80]))
    (medians,) = _medians(values)
    return {"p20": p20, "p50": p50, "p80": p80, **_interval(medians, len(values))}


def _interval(resampled: np.ndarray, rounds: int) -> dict[str, float | None]:
    if rounds < FEWEST:
        return {"low": None, "high": None}
    low, high = map(float, np.percentile(resampled, INTERVAL))
    return {"low": low, "high": high}


def _medians(*series: np.ndarray) -> list[np.ndarray]:
    """The medians of each series in ``RESAMPLED`` draws of the rounds, the same for all of them."""
    rounds = len(series[0])
    drawn = np.random.default_rng(0).integers(rounds, size=(RESAMPLED, rounds))
    return [np.median(values[drawn], axis=1) for values in series]
