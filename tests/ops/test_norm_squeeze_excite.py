"""Values, gradients and running statistics of a batch norm with its block, against torch's
``BatchNorm2d``, activation and the block's definition in float64."""

import itertools
from dataclasses import replace

import pytest
import torch
from norm_cases import RUNNING, Case, check, make, run, run_eager, run_judge
from operator_cases import DTYPES, LAYOUTS
from torch import nn

from se_kernels.core.variants import ACTS, GATES, POSTS, PRES, SQUEEZES

pytestmark = pytest.mark.usefixtures("poisoned_outputs", "one_thread")


def check_kernel(norm_kernel, device, case):
    inputs, dy = make(case, device)
    results = run(norm_kernel, inputs, dy, **case.variant)
    check(case, inputs, dy, results, run(norm_kernel, inputs, dy, (), **case.variant))
    return results


@pytest.mark.native
@pytest.mark.sampled(every=31, on_host=5)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize("training", [True, False])
def test_every_variant(norm_kernel, device, training, pre, layout, dtype):
    for residual, post in itertools.product((False, True), POSTS):
        case = Case(
            shape=(2, 18, 3, 7),
            reduced=5,
            dtype=dtype,
            training=training,
            pre=pre,
            layout=layout,
            residual=residual,
            post=post,
        )
        check_kernel(norm_kernel, device, case)


@pytest.mark.sampled(every=0, on_host=9)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("act", ACTS)
def test_every_excitation(norm_kernel, device, act, gate):
    for training, pre in itertools.product((True, False), ("identity", "hardswish")):
        case = Case(training=training, pre=pre, act=act, gate=gate, residual=True, post="relu")
        check_kernel(norm_kernel, device, case)


@pytest.mark.sampled(every=0, on_host=5)
@pytest.mark.parametrize("squeeze", SQUEEZES[1:])
@pytest.mark.parametrize("pre", PRES)
def test_a_maximum(norm_kernel, device, pre, squeeze):
    """The norm then runs apart from the block. Two numbers of v that float32 rounds to one share
    the gradient of their maximum, and do not in the judge: of 12 random ones none do."""
    for training in (True, False):
        case = Case(training=training, pre=pre, squeeze=squeeze, residual=True, post="relu")
        check_kernel(norm_kernel, device, case)


@pytest.mark.sampled(every=0, on_host=5)
@pytest.mark.parametrize("affine", [(), ("bn_weight",), ("bn_bias",), ("bn_weight", "bn_bias")])
@pytest.mark.parametrize("biases", [(), ("b1",), ("b2",)])
def test_what_may_be_left_out(norm_kernel, device, biases, affine):
    for pre, (training, running) in itertools.product(
        PRES, [(True, True), (True, False), (False, True)]
    ):
        case = Case(pre=pre, training=training, running=running, biases=biases, affine=affine)
        check_kernel(norm_kernel, device, case)


@pytest.mark.sampled(every=3, on_host=3)
@pytest.mark.parametrize("eps", [1e-5, 1e-3, 1, 0.0])
def test_eps(norm_kernel, device, eps):
    for training in (True, False) if eps else (False,):
        check_kernel(norm_kernel, device, Case(training=training, eps=eps))


@pytest.mark.sampled(every=47, on_host=9)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm_dtype", DTYPES, ids=str)
def test_weights_of_other_dtypes(norm_kernel, device, norm_dtype, weight_dtype, dtype):
    for layout, (training, pre) in zip(
        [*LAYOUTS] * 2, itertools.product((True, False), ("identity", "silu")), strict=True
    ):
        case = Case(
            dtype=dtype,
            weight_dtype=weight_dtype,
            norm_dtype=norm_dtype,
            training=training,
            pre=pre,
            layout=layout,
            residual=True,
            post="relu",
        )
        check_kernel(norm_kernel, device, case)


# Vectors are of 2 to 32 elements, the bytes of a mask of 8: sizes on both sides of each.
SIZES = [
    # (N, C, H, W), R
    ((2, 1, 1, 1), 1),
    ((1, 1, 1, 2), 1),
    ((3, 7, 1, 1), 2),
    ((2, 33, 1, 1), 17),
    *[((2, 3, 1, p), 2) for p in (2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65)],
    *[((2, c, 2, 3), 2) for c in (2, 4, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65)],
    *[((n, 12, 3, 3), 4) for n in (1, 3, 4, 5, 8, 9, 19)],
    ((1, 6, 23, 29), 2),
    ((1, 2, 61, 67), 1),  # more pixels than one partial sum takes
]


@pytest.mark.native
@pytest.mark.sampled(every=101, on_host=11)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape, reduced", SIZES)
def test_sizes(norm_kernel, device, shape, reduced, layout, dtype):
    case = Case(shape=shape, reduced=reduced, dtype=dtype, layout=layout)
    check_kernel(norm_kernel, device, case)
    tail = replace(case, pre="relu", residual=True, post="relu")
    if dtype == torch.float32:
        check_kernel(norm_kernel, device, tail)
    elif dtype == torch.bfloat16:
        check_kernel(norm_kernel, device, replace(tail, training=False, pre="silu"))


@pytest.mark.sampled(every=0, on_host=1)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_a_convolution(norm_kernel, device, layout):
    case = Case(layout=layout)
    inputs, dy = make(case, device)
    plain = run(norm_kernel, inputs, dy, **case.variant)
    for name in ("w1", "w2"):
        inputs[name] = inputs[name][:, :, None, None]
    for memory_format in LAYOUTS.values():
        weights = {n: inputs[n].contiguous(memory_format=memory_format) for n in ("w1", "w2")}
        results = run(norm_kernel, {**inputs, **weights}, dy, **case.variant)
        for name, result in results.items():
            if name in ("dw1", "dw2"):
                assert result.shape == inputs[name[1:]].shape
            assert torch.equal(result.view(plain[name].shape), plain[name]), name


# --- running statistics --------------------------------------------------------------------------


@pytest.mark.sampled(every=23, on_host=11)
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, 0.37, 1, 0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_momentum(norm_kernel, device, dtype, momentum):
    case = Case(dtype=dtype, norm_dtype=torch.float32, momentum=momentum)
    results = check_kernel(norm_kernel, device, case)
    if momentum == 0:
        inputs, _ = make(case, device)
        assert all(torch.equal(results[name], inputs[name]) for name in RUNNING)


@pytest.mark.sampled(every=0, on_host=1)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_many_batches_as_torch(norm_kernel, device, momentum):
    """Running statistics of ten batches, of several sizes; None: their cumulative mean."""
    cases = [Case(shape=(1 + i % 3, 5, 3, 4), dtype=torch.float64, seed=i) for i in range(10)]
    norm = nn.BatchNorm2d(5, momentum=momentum, affine=False).double()
    mean, var = (getattr(norm, name).clone().to(device) for name in RUNNING)
    for seen, case in enumerate(cases, 1):
        inputs, _ = make(case, device)
        norm(inputs["u"].cpu())
        inputs |= dict(running_mean=mean, running_var=var)
        share = 1 / seen if momentum is None else momentum
        norm_kernel(**inputs, training=True, momentum=share)
    assert norm.num_batches_tracked == 10
    torch.testing.assert_close(mean.cpu(), norm.running_mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(var.cpu(), norm.running_var, rtol=1e-13, atol=1e-13)


@pytest.mark.sampled(every=3, on_host=3)
@pytest.mark.parametrize("pre", PRES)
def test_running_statistics_move_by_the_same_bits_whatever_is_needed(norm_kernel, device, pre):
    case = Case(pre=pre)
    inputs, dy = make(case, device)
    moved = run(norm_kernel, inputs, dy, **case.variant)
    for need in ((), ("u",), ("w1",), ("bn_bias",)):
        some = run(norm_kernel, inputs, dy, need, **case.variant)
        for name in ("y", *RUNNING):
            assert torch.equal(some[name], moved[name]), name


@pytest.mark.parametrize("grads", [False, True])
def test_a_frozen_norm_moves_nothing(norm_kernel, device, grads):
    case = Case(training=False)
    inputs, dy = make(case, device)
    before = {name: inputs[name].clone() for name in RUNNING}
    versions = {name: inputs[name]._version for name in RUNNING}
    y = norm_kernel(**{n: t.requires_grad_(grads) if n == "u" else t for n, t in inputs.items()})
    if grads:
        y.backward(dy)
    for name in RUNNING:
        assert torch.equal(inputs[name], before[name])
        assert inputs[name]._version == versions[name]


def test_running_statistics_wider_than_the_sums_keep_their_digits(norm_kernel, device):
    """float64 beside float32: only what is new is of float32."""
    case = Case(norm_dtype=torch.float64, affine=(), momentum=2.0**-20)
    inputs, dy = make(case, device)
    results = run(norm_kernel, inputs, dy, (), **case.variant)
    exact = run_judge(case, inputs, dy, ())
    for name in RUNNING:
        # 2^-20 of some float32 roundings
        torch.testing.assert_close(results[name].cpu(), exact[name], rtol=0, atol=1e-11)


# --- means far from zero -------------------------------------------------------------------------


@pytest.mark.sampled(every=31, on_host=7)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, 8, 7, 9), (2, 3, 40, 41)], ids=str)
def test_means_of_a_thousand_deviations(norm_kernel, device, shape, training, pre, layout):
    """No further from float64 than torch's own batch norm with the block, both in float32.

    Root mean squares over the elements and over 4 draws; half as much again for chance, and 2
    float32 spacings of the largest value where torch is exact.
    """
    squares = {}
    for seed in range(4):
        case = Case(
            shape,
            training=training,
            pre=pre,
            layout=layout,
            offset=1000.0,
            act="identity",
            seed=seed,
        )
        inputs, dy = make(case, device)
        exact = run_judge(case, inputs, dy)
        runs = run(norm_kernel, inputs, dy, **case.variant), run_eager(case, inputs, dy)
        for name, value in exact.items():
            errors = [(r[name].double().cpu() - value).square().sum() for r in runs]
            floor = (2 * torch.finfo(torch.float32).eps * value.abs().max()) ** 2 * value.numel()
            squares[name] = squares.get(name, 0) + torch.stack([*errors, floor])
    for name, (error, of_torch, floor) in squares.items():
        assert error.sqrt() <= 1.5 * of_torch.sqrt() + floor.sqrt(), (
            f"{name}: {error.sqrt():.3g}, torch {of_torch.sqrt():.3g}, floor {floor.sqrt():.3g}"
        )


# --- beside eager --------------------------------------------------------------------------------

REALISTIC = [
    ((2, 256, 28, 28), 16),
    ((3, 512, 14, 14), 32),
    ((4, 1024, 7, 7), 64),
    ((3, 72, 28, 28), 18),
]


@pytest.mark.parametrize("value", [True, False])
def test_y_is_kept_is_deprecated_and_changes_nothing(norm_kernel, device, value):
    case = Case(post="relu", residual=True)
    inputs, dy = make(case, device)
    with pytest.warns(DeprecationWarning, match="y_is_kept is deprecated"):
        results = run(norm_kernel, inputs, dy, **case.variant, y_is_kept=value)
    expected = run(norm_kernel, inputs, dy, **case.variant)
    assert all(torch.equal(results[name], t) for name, t in expected.items())


@pytest.mark.sampled(every=0, on_host=11)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape, reduced", REALISTIC)
def test_realistic_sizes_beside_eager(norm_kernel, device, shape, reduced, layout, dtype):
    """No further from the judge than twice what eager in the same dtype is, in maximum norms.

    The final ReLU and pre are smooth here: of so many numbers some would be on their jumps.
    """
    for training, pre in ((True, "silu"), (True, "identity"), (False, "silu")):
        case = Case(shape, reduced, dtype, training=training, pre=pre, layout=layout, residual=True)
        inputs, dy = make(case, device)
        exact = run_judge(case, inputs, dy)
        rounded = run_eager(case, inputs, dy)
        for name, result in run(norm_kernel, inputs, dy, **case.variant).items():
            expected = exact[name].view(result.shape)
            error, baseline = (
                (t.double().cpu() - expected).abs().max() for t in (result, rounded[name])
            )
            floor = 4 * torch.finfo(result.dtype).eps * expected.abs().max()
            assert error <= 2 * baseline + floor, (
                f"{name}: error {error:.3g}, eager's {baseline:.3g}, floor {floor:.3g}; {case}"
            )


# --- the judge -----------------------------------------------------------------------------------


@pytest.mark.sampled(every=0, on_host=0)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "name",
    ["y", "du", "dbn_weight", "dbn_bias", "dw1", "dw2", "db1", "db2", "dresidual", *RUNNING],
)
def test_the_judge_notices_half_a_percent(norm_kernel, device, name, training):
    if name in RUNNING and not training:
        pytest.skip("they do not move")
    case = Case(shape=(2, 18, 3, 7), reduced=5, residual=True, training=training, momentum=0.9)
    inputs, dy = make(case, device)
    results = run(norm_kernel, inputs, dy, **case.variant)
    results[name] = results[name].clone()  # dresidual is dy itself
    largest = results[name].abs().argmax()
    results[name].view(-1)[largest] *= 1.005
    with pytest.raises(AssertionError, match=f"^{name}: 1 of"):
        check(case, inputs, dy, results)


@pytest.mark.native
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("images", [3, 5, 6, 7, 11])
def test_the_mean_of_a_constant_channel_is_exact(norm_kernel, device, images, layout):
    """A mean that is an ulp off shows in y as many times as large, by 1 / sqrt(eps)."""
    case = Case(shape=(images, 9, 7, 5), layout=layout, dtype=torch.float64, momentum=1.0)
    inputs, dy = make(case, device)
    constants = torch.linspace(-3, 3, 9, dtype=torch.float64, device=device)
    inputs["u"] = torch.empty_like(inputs["u"]).copy_(constants[:, None, None])
    results = run(norm_kernel, inputs, dy, **case.variant)
    assert torch.equal(results["running_mean"], constants)
    assert not results["running_var"].any()
    assert torch.equal(results["y"], results["y"][:1, :, :1, :1].expand_as(results["y"]))
    check(case, inputs, dy, results)
