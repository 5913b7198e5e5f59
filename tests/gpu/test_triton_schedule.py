"""How the Triton backend cuts the work, in what order it is done, and that nobody waits in vain."""

import itertools
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import LAYOUTS, Case, check, make, run

import se_kernels
from se_kernels.backends.triton import plan as plans
from se_kernels.backends.triton.plan import Device
from se_kernels.core import dispatch

pytest.importorskip("triton")

from se_kernels.backends.triton.kernels import backward, forward, scale, squeeze
from se_kernels.backends.triton.phases.schedule import item_of

pytestmark = pytest.mark.usefixtures("poisoned_outputs")
interpreted_only = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="orders the programs of the interpreter"
)

FIRST_SWEEP, EXCITE, SECOND_SWEEP = range(3)


# --- the order of the items ----------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 3, 7])
@pytest.mark.parametrize("tiles", [1, 2, 5])
@pytest.mark.parametrize("excites", [0, 1, 3])
def test_each_item_once_and_after_what_it_waits_for(groups, tiles, excites):
    for lag in range(1, groups + 1):
        for ahead in {0, lag // 2} | ({lag} if lag == groups else set()):
            total = groups * (2 * tiles + excites)
            order = [item_of.fn(t, groups, tiles, excites, lag, ahead) for t in range(total)]
            at = {item: ticket for ticket, item in enumerate(order)}
            items = {FIRST_SWEEP: tiles, EXCITE: excites, SECOND_SWEEP: tiles}
            assert at.keys() == {
                (kind, group, index)
                for kind, count in items.items()
                for group, index in itertools.product(range(groups), range(count))
            }
            for group in range(groups):
                tickets = [[at[kind, group, i] for i in range(n)] for kind, n in items.items()]
                first, excite, second = tickets
                assert not excite or max(first) < min(excite)
                assert max(first + excite) < min(second)


def test_without_a_second_sweep_the_rest_comes_first():
    """dx not wanted: lag and ahead are all groups, and the launch ends before the second sweep."""
    groups, tiles, excites = 3, 4, 2
    wanted = groups * (tiles + excites)
    order = [item_of.fn(t, groups, tiles, excites, groups, groups) for t in range(wanted)]
    assert {kind for kind, *_ in order} == {FIRST_SWEEP, EXCITE}
    assert len(set(order)) == wanted


# --- the cuts ------------------------------------------------------------------------------------

_devices = st.sampled_from([Device(), Device(40, 4 << 20), Device(108, 40 << 20)])


@settings(max_examples=500, deadline=None, derandomize="CI" in os.environ, database=None)
@given(
    images=st.sampled_from([1, 2, 3, 8, 37, 256, 4096]),
    channels=st.one_of(st.integers(1, 600), st.sampled_from([1024, 2048, 7392, 10444])),
    pixels=st.sampled_from([0, 1, 4, 49, 196, 784, 3136, 3137, 512**2, 2**31]),
    reduced=st.sampled_from([0, 1, 2, 8, 33, 128, 1026]),
    itemsize=st.sampled_from([2, 4, 8]),
    weight_itemsize=st.sampled_from([2, 4, 8]),
    nhwc=st.booleans(),
    device=_devices,
    block_bytes=st.sampled_from([None, plans.SINGLE_BLOCKS, plans.PAIR_BLOCKS]),  # of a sweep
)
def test_plans_cover_everything_within_bounds(
    images, channels, pixels, reduced, itemsize, weight_itemsize, nhwc, device, block_bytes
):
    if block_bytes is None:
        sizes = images, channels, pixels, reduced, itemsize, weight_itemsize
        plan, block_bytes = plans.choose(*sizes, nhwc, device), (plans.BLOCK_BYTES,)
    else:
        if weight_itemsize == 8:  # as plan_sweep has it
            block_bytes = tuple(size * itemsize // 8 for size in block_bytes)
        sizes = images, channels, pixels, itemsize
        plan, reduced = plans.choose_sweep(*sizes, nhwc, device, block_bytes), 0
        assert plan.split <= plans.MOST_PARTS
    sizes = plan.channels, plan.rows, plan.block_pixels, plan.reduced, plan.split_block
    assert all(size & (size - 1) == 0 and size >= 1 for size in sizes)
    assert (plan.groups - 1) * plan.images < images <= plan.groups * plan.images
    assert (plan.blocks - 1) * plan.channels < channels <= plan.blocks * plan.channels
    part = plan.span * plan.block_pixels
    assert (plan.split - 1) * part < max(1, pixels) <= plan.split * part
    assert nhwc or (plan.images * plan.channels) % plan.rows == 0
    products = plan.images * plan.channels * plan.reduced if reduced else 0
    assert plan.tensor_cores or products <= plans.PRODUCT_ELEMENTS
    assert not plan.tensor_cores or (plan.images >= 8 and max(itemsize, weight_itemsize) < 8)
    height = plan.block_pixels * (plan.channels if nhwc else plan.rows)
    assert height * itemsize <= max(block_bytes[0], plan.channels * itemsize)
    # a block begins at a whole byte of a mask
    length, whole = (plan.channels, channels) if nhwc else (plan.block_pixels, pixels)
    assert length % 8 == 0 or length >= whole
    assert plan.excites * plans.SUMMED_NUMBERS >= plan.images * reduced
    assert 1 <= plan.lag <= plan.groups
    assert 0 <= plan.ahead < plan.lag
    group_bytes = plan.images * channels * max(1, pixels) * itemsize
    assert plan.lag == 1 or plan.lag * group_bytes <= device.l2_bytes


@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize(
    "channels, side, reduced", [(256, 56, 16), (512, 28, 32), (1024, 14, 64), (2048, 7, 128)]
)
def test_the_stages_of_the_network_fill_the_gpu(channels, side, reduced, nhwc):
    """At N = 256: tiles of 16 to 64 KB, and weights that add no more than a quarter to the bytes of
    x that cross the L2; at N = 1: a tile for four multiprocessors of five at least."""
    whole = plans.choose(256, channels, side**2, reduced, 2, 2, nhwc, Device())
    tile = 2 * whole.images * whole.channels * side**2 / whole.split
    assert 16 << 10 <= tile <= 64 << 10
    weights = 2 * 2 * channels * reduced * whole.groups * whole.split
    assert weights <= 3 * 2 * 256 * channels * side**2 / 4
    one = plans.choose(1, channels, side**2, reduced, 2, 2, nhwc, Device())
    bytes_of_x = 2 * channels * side**2
    assert one.tiles >= min(0.8 * 132, bytes_of_x / (4 * plans.SMALLEST_TILE_BYTES))


# --- small tiles, so that small cases have many --------------------------------------------------


def cut_small(monkeypatch, **sizes):
    """Every launch is cut so; sizes: of ``Plan``. Blocks are whole bytes of a mask."""

    def cut_of(x, reduced, layout):
        images, channels, height, width = x.shape
        cut = dict(images=2, channels=4, rows=4, block_pixels=8, span=1, reduced=2, lag=1)
        if layout == "nhwc":
            cut |= dict(channels=8, block_pixels=4)
        cut |= sizes
        cut["rows"] = 1 if layout == "nhwc" else cut["rows"]
        groups = plans.ceil_div(images, cut["images"])
        cut["lag"] = min(cut["lag"], groups)
        split = plans.ceil_div(height * width, cut["span"] * cut["block_pixels"])
        return plans.Plan(
            **cut,
            groups=groups,
            blocks=plans.ceil_div(channels, cut["channels"]),
            split=split,
            split_block=1 if split == 1 else 2,
            tensor_cores=False,
            excites=plans.ceil_div(cut["images"] * reduced, plans.SUMMED_NUMBERS),
            ahead=cut["lag"] // 2,
        )

    def plan_of(x, w1, layout):
        return cut_of(x, w1.shape[0], layout)

    def plan_sweep(x, layout, block_bytes, sums):
        return cut_of(x, 0, layout)

    for module in (forward, backward):
        monkeypatch.setattr(module, "plan_of", plan_of)
    for module in (scale, squeeze):
        monkeypatch.setattr(module, "plan_sweep", plan_sweep)


def block(*arguments, **options):
    return se_kernels.squeeze_excite(*arguments, **options, backend="triton")


@pytest.fixture
def place_of_tensors():
    reason = se_kernels.available_backends()["triton"]
    if reason is not None:
        pytest.skip(reason)
    return "cuda" if torch.cuda.is_available() else "cpu"


MANY = Case(shape=(3, 12, 3, 5), reduced=35, residual=True, post="relu", squeeze="avgmax")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        dict(lag=2),
        dict(lag=3, images=1),
        dict(lag=5, images=1, span=99),
        dict(images=4, rows=2, channels=8),
        dict(images=8, channels=8, rows=16, block_pixels=16, span=3),
    ],
    ids=str,
)
def test_any_cut_gives_the_same_block(place_of_tensors, monkeypatch, sizes, layout):
    cut_small(monkeypatch, **sizes)
    case = replace(MANY, layout=layout)
    inputs, dy = make(case, place_of_tensors)
    inputs["x"][:, ::3] = inputs["x"][:, ::3, :1, :1]  # ties in every part of the pixels
    inputs["residual"] = inputs["residual"].abs() + 8  # far from the ReLU's jump
    check(case, inputs, dy, run(block, inputs, dy, **case.variant))


@pytest.mark.parametrize("need", [["w1"], ["w2", "b2"], ["b1"], ["residual", "w1"], ["x"]])
def test_any_cut_without_some_gradients(place_of_tensors, monkeypatch, need):
    cut_small(monkeypatch)
    inputs, dy = make(MANY, place_of_tensors)
    check(MANY, inputs, dy, run(block, inputs, dy, need, **MANY.variant))


@interpreted_only
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("slots", [1, 3, 10_000])
@pytest.mark.parametrize("lag", [1, 2])
def test_programs_in_any_order_give_the_same_bits(monkeypatch, lag, slots, layout):
    """However few run at once, and whoever takes which ticket: none waits for one that has not
    begun, and what is read was written before."""
    from triton_interleaved import interleaved

    cut_small(monkeypatch, lag=lag, images=1)
    case = replace(MANY, shape=(2, 12, 3, 4), reduced=3, layout=layout)
    inputs, dy = make(case)
    expected = run(block, inputs, dy, **case.variant)
    with interleaved(slots, seed=lag) as launches:
        results = run(block, inputs, dy, **case.variant)
    *meeting, alone = launches  # the weights' gradients by a kernel whose programs never meet
    assert [launch.fn.__name__ for launch in meeting] == ["forward_kernel", "backward_kernel"]
    assert all(launch.switches > launch.programs for launch in meeting)
    assert alone.switches == 0
    for name, result in results.items():
        assert torch.equal(result, expected[name]), name


@interpreted_only
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_of_the_pixels_add_up_after_a_norm(monkeypatch, layout):
    """Whole channels and any cut of them give the same numbers; and so does the op of a whole.

    The layouts take different norms, as interpreted kernels are slow.
    """
    pre = {"nchw": "identity", "channels_last": "silu"}[layout]
    backend = dispatch.get("triton")
    memory_format = LAYOUTS[layout]
    u, dy = (t.contiguous(memory_format=memory_format) for t in torch.randn(2, 2, 9, 4, 6))
    norm, statistics, variant = torch.randn(3, 9), torch.rand(2, 9), ("relu", 0.0, "sigmoid")
    w1, w2 = torch.randn(3, 9), torch.randn(9, 3)

    def run():
        mean, m2 = backend.norm_moments(u, False)
        z = backend.norm_squeeze(u, norm, "silu")
        _, sums = backend.norm_scale_backward(dy, u, None, norm, "silu", False)
        results = [mean, m2, z, sums]
        y, _, numbers, a, moved = backend.norm_forward(
            u, None, None, *statistics, None, w1, w2, None, None, None, True, 0.1, 1e-5, pre,
            *variant, "none", False,
        )  # fmt: skip
        needs = [True, False, True, True, True, False, False]
        du, _, d, *weights = backend.norm_backward(
            dy, u, None, numbers, a, w1, w2, True, pre, *variant, needs
        )[2:]
        return [*results, y, numbers, a, moved, du, d, *weights[:2]]

    whole = run()
    cut_small(monkeypatch)
    for result, other in zip(run(), whole, strict=True):  # the sums are float32
        torch.testing.assert_close(result.float(), other.float(), rtol=1e-5, atol=1e-5)


@interpreted_only
def test_a_program_that_waits_for_a_later_one_is_noticed(monkeypatch):
    """The check above can fail: with the sweeps in the wrong order one slot is not enough."""
    from triton.runtime.errors import InterpreterError
    from triton_interleaved import interleaved

    original = item_of.fn

    def backwards(ticket, groups, tiles, excites, lag, ahead):
        last = groups * (2 * tiles + excites) - 1
        return original(last - ticket, groups, tiles, excites, lag, ahead)

    monkeypatch.setattr("triton_interleaved.MOST_SWITCHES", 500)
    monkeypatch.setattr(forward, "item_of", backwards)
    cut_small(monkeypatch)
    inputs, _ = make(Case(shape=(2, 4, 2, 2)))
    with pytest.raises(InterpreterError, match="wait for one another"), interleaved(1, 0):
        block(**inputs)
