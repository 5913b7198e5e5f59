"""A batch norm with its block on random cases: any shape, strides, dtypes, variant and subset of
gradients at once. SE_KERNELS_EXAMPLES asks for another number than 150 a dtype of u."""

import os

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from norm_cases import DIFFERENTIABLE, RUNNING, Case, check, copies, make
from operator_cases import DTYPES, NoInputs, storage_bytes
from placements import IMAGES, MATRICES, VECTORS
from random_cases import Placed, check_strides, expansions, random_cases, sides, windows

from se_kernels.core.variants import ACTS, GATES, POSTS, PRES

pytestmark = [
    pytest.mark.native,
    pytest.mark.usefixtures("poisoned_outputs", "one_thread"),
]

EXAMPLES = int(os.environ.get("SE_KERNELS_EXAMPLES", "150"))


@st.composite
def placed_cases(draw, dtype):
    """A ``Placed`` with u in ``dtype``."""

    def some(*names):
        return tuple(name for name in names if draw(st.booleans()))

    training = draw(st.booleans())
    case = Case(
        shape=(draw(st.integers(1, 5)), draw(sides), *draw(windows)),
        reduced=draw(sides),
        dtype=dtype,
        weight_dtype=draw(st.sampled_from([dtype, *DTYPES])),
        norm_dtype=draw(st.sampled_from([dtype, *DTYPES])),
        training=training,
        affine=some("bn_weight", "bn_bias"),
        running=not training or draw(st.booleans()),
        momentum=draw(st.sampled_from([0.1, 0.0, 1.0, 0.3])),
        eps=draw(st.sampled_from([1e-5, 1e-3])),
        pre=draw(st.sampled_from(PRES)),
        act=draw(st.sampled_from(ACTS)),
        act_slope=draw(st.sampled_from([0.01, 0.2, 1.0])),
        gate=draw(st.sampled_from(GATES)),
        post=draw(st.sampled_from(POSTS)),
        biases=some("b1", "b2"),
        residual=draw(st.booleans()),
        expanded=draw(expansions),
        seed=draw(st.integers(0, 2**20)),
    )
    images, _, height, width = case.shape
    if training and images * height * width == 1:
        reject()
    present = ["u", "w1", "w2", *case.affine, *case.biases, *["residual"] * case.residual]
    ways = {"u": IMAGES, "residual": IMAGES, "w1": MATRICES, "w2": MATRICES}
    placed = [*present, *(RUNNING if case.running else ())]
    places = {n: draw(st.sampled_from(list(ways.get(n, VECTORS)))) for n in placed}
    if case.expanded:
        places["u"] = "expanded"
    dy_place = draw(st.sampled_from(["expanded", *IMAGES]))
    return Placed(case, places, dy_place, some(*present))


def check_placed(norm_kernel, device, placed):
    """Asserts that ``norm_kernel`` is right on ``placed``, writes into no input but the running
    statistics and keeps u's strides."""
    case = placed.case
    try:
        inputs, dy = placed.laid_out(*make(case, device))
    except NoInputs:
        reject()
    leaves = {
        name: None if t is None else t.detach().requires_grad_(name in placed.need)
        for name, t in inputs.items()
    }
    for name in RUNNING:
        if leaves[name] is not None:  # cloned they would be dense
            leaves[name] = VECTORS[placed.places[name]](copies(inputs)[name])
    held = {**inputs, "dy": dy} | ({} if case.training else {n: leaves[n] for n in RUNNING})
    before = {name: storage_bytes(t) for name, t in held.items() if t is not None}

    y = norm_kernel(**leaves, **case.variant)
    assert y.requires_grad == bool(placed.need)
    given_to = {}
    if "u" in placed.need:  # .grad would be a copy with u's strides
        leaves["u"].register_hook(lambda grad: given_to.update(du=grad))
    results = {"y": y.detach()}
    if placed.need:
        y.backward(dy)
    for name in DIFFERENTIABLE:
        grad = None if leaves[name] is None else leaves[name].grad
        assert (grad is not None) == (name in placed.need), f"d{name}"
        if grad is not None:
            results[f"d{name}"] = grad
    if case.training and case.running:
        results |= {name: leaves[name] for name in RUNNING}

    check(case, inputs, dy, results)
    check_strides(inputs["u"], y, "y")
    if "u" in placed.need:
        check_strides(inputs["u"], given_to["du"], "du")
    for name, memory in before.items():
        assert storage_bytes(held[name]).equal(memory), f"{name} was modified"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_cases(norm_kernel, backend, device, dtype):
    @random_cases(EXAMPLES, backend)
    @given(placed_cases(dtype))
    def check_all(placed):
        check_placed(norm_kernel, device, placed)

    check_all()
