"""The block, and the block behind a batch norm that trains or is frozen, as one thing to test.

A test of what is alike in them takes the fixture ``op``, one of these on one backend.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType

import norm_cases
import operator_cases

import se_kernels
from se_kernels import reference


def norm_definition(running_mean, running_var, training, momentum, **arguments):
    """``reference.batch_norm_squeeze_excite``, called as the operator is."""
    mean, var = (None, None) if training else (running_mean, running_var)
    return reference.batch_norm_squeeze_excite(mean=mean, var=var, **arguments)


@dataclass(frozen=True)
class Operator:
    function: Callable
    definition: Callable
    cases: ModuleType
    image: str  # what it calls x
    names: tuple[str, ...]  # the arguments with a gradient
    prefix: str = ""  # of its registered ops
    running: tuple[str, ...] = ()  # what a call moves
    pres: tuple[str, ...] = ("identity",)  # activations that differ
    tolerance: float = 1e-12  # float64 beside the largest number, where the order of sums differs
    options: dict = field(default_factory=dict)  # of its cases
    backend: str | None = None

    def on(self, backend):
        return replace(self, backend=backend)

    def __call__(self, *args, **options):
        return self.function(*args, **options, backend=self.backend)

    def case(self, **options):
        """A case of it; what only another operator knows is left out."""
        known = self.cases.Case.__dataclass_fields__
        given = {**options, **self.options}
        return self.cases.Case(**{name: value for name, value in given.items() if name in known})

    def make(self, case, device="cpu"):
        return self.cases.make(case, device)

    def run(self, case, inputs, dy, need=None):
        return self.cases.run(self, inputs, dy, need, **case.variant)

    def judge(self, case, inputs, dy):
        return self.cases.run_judge(case, inputs, dy)

    def leaves(self, case, device="cpu"):
        """The arguments of a case by name, those in ``names`` requiring a gradient; and dy."""
        inputs, dy = self.make(case, device)
        return self.leaves_of(inputs), dy

    def leaves_of(self, inputs):
        return {
            name: t if t is None else t.detach().requires_grad_(name in self.names)
            for name, t in self.copies(inputs).items()
        }

    def copies(self, inputs):
        """With what a call moves its own."""
        own = {n: inputs[n].detach().clone() for n in self.running if inputs[n] is not None}
        return {**inputs, **own}

    def results(self, y, leaves):
        """After ``y.backward``: what ``run`` gives."""
        grads = {f"d{n}": leaves[n].grad for n in self.names if leaves[n] is not None}
        return {"y": y.detach(), **grads, **{n: leaves[n] for n in self.running}}


_norm = dict(
    function=se_kernels.batch_norm_squeeze_excite,
    definition=norm_definition,
    cases=norm_cases,
    image="u",
    names=norm_cases.DIFFERENTIABLE,
    prefix="norm_",
    pres=("identity", "relu", "silu", "hardswish"),
    tolerance=1e-11,
)
OPERATORS = {
    "block": Operator(
        se_kernels.squeeze_excite,
        reference.squeeze_excite,
        operator_cases,
        "x",
        operator_cases.NAMES,
    ),
    "norm": Operator(**_norm, options=dict(training=True), running=norm_cases.RUNNING),
    "frozen norm": Operator(**_norm, options=dict(training=False)),
}
