"""One trial of a backend: a case, how it is called, and whether what comes out is right."""

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from se_kernels.functional import batch_norm_squeeze_excite, squeeze_excite
from se_kernels.verification import block_case, norm_case
from se_kernels.verification.judge import Mismatch

CALLS: dict[str, Callable[..., Tensor]] = {
    "block": squeeze_excite,
    "excitation": block_case.with_excitation,
    "norm": batch_norm_squeeze_excite,
}
SIXTEEN_BITS = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Took:
    """Seconds: of the first call, forward and backward, and of the same call again."""

    first: float
    again: float


@dataclass(frozen=True)
class Trial:
    """``call`` is a key of CALLS."""

    call: str
    case: block_case.Case | norm_case.Case

    @property
    def of_norm(self) -> bool:
        return self.call.startswith("norm")

    def __str__(self) -> str:
        case = self.case
        words = [self.call, str(case.dtype)[6:], case.layout, "x".join(map(str, case.shape))]
        words.append(f"R{case.reduced}")
        if self.of_norm:
            words += ["training" if case.training else "evaluation", f"pre={case.pre}"]
        words += [case.squeeze, case.act, case.gate]
        words += ["residual"] * case.residual + [f"post={case.post}"] * (case.post != "none")
        return " ".join(words)

    def command(self, backend: str, device: str) -> str:
        """What to type to see it again, on one line."""
        module = "norm_case" if self.of_norm else "block_case"
        changed = {
            field.name: getattr(self.case, field.name)
            for field in dataclasses.fields(self.case)
            if getattr(self.case, field.name) != field.default
        }
        case = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        interpreted = "TRITON_INTERPRET=1 " if os.environ.get("TRITON_INTERPRET") == "1" else ""
        return (
            f'{interpreted}python -c "import torch; from se_kernels.verification import Trial, '
            f"{module}; Trial({self.call!r}, {module}.Case({case}))"
            f'.verify({backend!r}, {device!r})"'
        )

    def verify(self, backend: str, device: str, again: bool = True) -> Took:
        """Raises Mismatch where y, a gradient or a running statistic is wrong, with gradients and
        without, or with ``again`` has other bits in a second call."""
        judge = norm_case if self.of_norm else block_case
        inputs, dy = judge.make(self.case, device)
        function = partial(CALLS[self.call], backend=backend)
        run = partial(judge.run, function, inputs, dy, **self.case.variant)
        results, first = _timed(run, device)
        self._check(inputs, dy, results)
        if not (self.of_norm and self.case.training):
            self._check(inputs, dy, run(need=()))
        repeated, second = _timed(run, device) if again else (results, first)
        for name, result in repeated.items():
            if not torch.equal(result, results[name]):
                raise Mismatch(f"{name}: expected the same bits in a second call; {self.case}")
        return Took(first, second)

    def _check(self, inputs, dy, results) -> None:
        if self.of_norm:
            norm_case.check(self.case, inputs, dy, results)
        elif self.call == "excitation" and self.case.dtype in SIXTEEN_BITS:
            block_case.check_against_eager(self.case, inputs, dy, results)  # z is rounded too
        else:
            block_case.check(self.case, inputs, dy, results)


def _timed(run, device: str) -> tuple[dict[str, Tensor], float]:
    start = time.perf_counter()
    results = run()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return results, time.perf_counter() - start
