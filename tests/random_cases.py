"""Random cases: any shape, strides, dtypes, variant, and subset of gradients at once.

The same ones every time where the environment variable CI is set, others in every run elsewhere.
"""

import os
from dataclasses import dataclass

import torch
from host_gpu import is_on_host
from hypothesis import HealthCheck, reject, settings
from hypothesis import strategies as st
from operator_cases import DTYPES, NAMES, Case, NoInputs, check, make, storage_bytes
from placements import IMAGES, MATRICES, VECTORS

from se_kernels.core.variants import ACTS, GATES, POSTS, SQUEEZES


def random_cases(examples: int, backend: str) -> settings:
    """hypothesis' settings for a test that draws ``placed_cases``; on Triton a 100th of them, on
    the stand-in for CUDA a 5th."""
    fewer = 100 if backend == "triton" else 5 if is_on_host(backend) else 1
    return settings(
        max_examples=max(1, examples // fewer),
        deadline=None,
        derandomize="CI" in os.environ,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@dataclass(frozen=True)
class Placed:
    """A case, how each of its tensors lies, and which of them require a gradient."""

    case: Case
    places: dict[str, str]
    dy_place: str  # a name of IMAGES, or "expanded": dy of y.sum()
    need: tuple[str, ...]

    def laid_out(self, inputs, dy):
        """``inputs`` and ``dy`` in their places."""
        ways = {"x": IMAGES, "u": IMAGES, "residual": IMAGES, "w1": MATRICES, "w2": MATRICES}
        inputs = dict(inputs)
        for name, way in self.places.items():
            if way != "expanded":
                inputs[name] = ways.get(name, VECTORS)[way](inputs[name])
        if self.dy_place == "expanded":
            return inputs, dy.new_ones(()).expand(dy.shape)
        return inputs, IMAGES[self.dy_place](dy)


sides = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 33]))
windows = st.one_of(
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.sampled_from([(1, 1), (1, 16), (17, 1), (7, 7), (4, 8), (3, 11)]),
)
expansions = st.sampled_from([(), (), (), (0,), (1,), (2,), (3,), (2, 3), (0, 1), (0, 1, 2, 3)])


@st.composite
def placed_cases(draw, dtype, weight_dtypes=DTYPES):
    """A ``Placed`` with x in ``dtype``."""
    biases = draw(st.sampled_from([(), ("b1",), ("b2",), ("b1", "b2")]))
    case = Case(
        shape=(draw(st.integers(1, 5)), draw(sides), *draw(windows)),
        reduced=draw(sides),
        dtype=dtype,
        weight_dtype=draw(st.sampled_from([dtype, *weight_dtypes])),
        squeeze=draw(st.sampled_from(SQUEEZES)),
        act=draw(st.sampled_from(ACTS)),
        act_slope=draw(st.sampled_from([0.01, 0.2, 1.0])),
        gate=draw(st.sampled_from(GATES)),
        post=draw(st.sampled_from(POSTS)),
        biases=biases,
        residual=draw(st.booleans()),
        expanded=draw(expansions),
        seed=draw(st.integers(0, 2**20)),
    )
    present = ["x", "w1", "w2", *biases, *(["residual"] if case.residual else [])]
    image_places = st.sampled_from(list(IMAGES))
    places = {name: draw(image_places) for name in ("x", "residual") if name in present}
    if case.expanded:
        places["x"] = "expanded"
    places |= {name: draw(st.sampled_from(list(MATRICES))) for name in ("w1", "w2")}
    places |= {name: draw(st.sampled_from(list(VECTORS))) for name in biases}
    dy_place = draw(st.one_of(st.just("expanded"), image_places))
    need = tuple(name for name in present if draw(st.booleans()))
    return Placed(case, places, dy_place, need)


def check_strides(x, out, name):
    """A dense x gives its own strides, any other a dense tensor in one of the two layouts."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        assert out.stride() == x.stride(), name
    else:
        contiguous = out.is_contiguous() or out.is_contiguous(memory_format=torch.channels_last)
        assert contiguous, name


def check_placed(kernel, device, placed):
    """Asserts that ``kernel`` is right on ``placed``, touches no input and keeps x's strides."""
    try:
        inputs, dy = placed.laid_out(*make(placed.case, device))
    except NoInputs:  # about one case in 40,000
        reject()
    held = {**inputs, "dy": dy}
    before = {name: storage_bytes(t) for name, t in held.items() if t is not None}

    leaves = {
        name: None if t is None else t.detach().requires_grad_(name in placed.need)
        for name, t in inputs.items()
    }
    y = kernel(**leaves, **placed.case.variant)
    assert y.requires_grad == bool(placed.need)
    given = {}
    if "x" in placed.need:  # .grad would be a copy with x's strides
        leaves["x"].register_hook(lambda grad: given.update(dx=grad))
    results = {"y": y.detach()}
    if placed.need:
        y.backward(dy)
    for name in NAMES:
        grad = None if leaves[name] is None else leaves[name].grad
        assert (grad is not None) == (name in placed.need), f"d{name}"
        if grad is not None:
            results[f"d{name}"] = grad

    check(placed.case, inputs, dy, results)
    check_strides(inputs["x"], y, "y")
    if "x" in placed.need:
        check_strides(inputs["x"], given["dx"], "dx")
    for name, memory in before.items():
        assert torch.equal(storage_bytes(held[name]), memory), f"{name} was modified"
