"""Which of a test's parametrised cases run: all pairs of values, or all cases in `make test-all`.

A fault of one value, or of two together, shows in some case of a pairwise covering set; the full
product of five parameters would be ten times as many cases.
"""

import itertools
import os
from collections.abc import Hashable, Sequence

import pytest

EVERY_CASE = os.environ.get("SE_KERNELS_EVERY_CASE") == "1"
FEWEST_AXES = 3  # of two parameters the pairs are the product


def pairwise(cases: Sequence[tuple[Hashable, ...]]) -> list[int]:
    """The indices of cases that hold every pair of values which any case holds; greedy.

    >>> pairwise([(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0)])
    [0, 3, 5, 6]
    """
    pairs = [set(itertools.combinations(enumerate(case), 2)) for case in cases]
    missing = set().union(*pairs)
    chosen = []
    while missing:
        best = max(range(len(cases)), key=lambda k: len(pairs[k] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return sorted(chosen)


def select(items: Sequence[pytest.Item], every: int) -> list[pytest.Item]:
    """Of one test's cases on one backend: the pairwise set, or one in ``every`` if those are fewer;
    none if ``every`` is 0."""
    if every == 0:
        return []
    sampled = list(items[::every])
    cases = [_values(item) for item in items]
    if len(cases[0]) < FEWEST_AXES:
        return sampled
    covering = [items[k] for k in pairwise(cases)]
    return min(covering, sampled, key=len)


def _values(item: pytest.Item) -> tuple[Hashable, ...]:
    """The case's value of each parameter but the backend; an unhashable one by its identity."""
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return ()
    return tuple(
        value if isinstance(value, (str, int, float, type(None))) else id(value)
        for name, value in callspec.params.items()
        if name != "backend"
    )
