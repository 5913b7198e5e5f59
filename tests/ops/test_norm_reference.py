"""The definition of a batch norm with its block, and the function on backend "reference", against
``torch.nn.BatchNorm2d``, torch's activation and the block's definition, in float64."""

import itertools
import warnings

import pytest
import torch
from norm_cases import RUNNING, Case, composed, make, run, run_judge
from operator_cases import LAYOUTS

import se_kernels
from se_kernels import reference
from se_kernels.core.variants import POSTS, PRES, SQUEEZES

pytestmark = pytest.mark.usefixtures("one_thread")


def function(**arguments):
    return se_kernels.batch_norm_squeeze_excite(**arguments, backend="reference")


def definition(running_mean, running_var, training, momentum, **arguments):
    mean, var = (None, None) if training else (running_mean, running_var)
    return reference.batch_norm_squeeze_excite(mean=mean, var=var, **arguments)


def assert_close(results, expected, rtol=1e-10):
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(1.0, value.abs().max().item())
        torch.testing.assert_close(
            results[name], value, rtol=rtol, atol=rtol * scale,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize("training", [True, False])
def test_every_variant(training, pre, squeeze, layout):
    for residual, post in itertools.product((False, True), POSTS):
        case = Case(
            dtype=torch.float64, training=training, pre=pre, squeeze=squeeze, residual=residual,
            post=post, layout=layout,
        )  # fmt: skip
        inputs, dy = make(case)
        exact = run_judge(case, inputs, dy)
        assert_close(run(function, inputs, dy, **case.variant), exact)
        defined = run(definition, inputs, dy, **case.variant)
        assert_close({**defined, **{n: exact[n] for n in RUNNING if training}}, exact)


@pytest.mark.parametrize("affine", [(), ("bn_weight",), ("bn_bias",)])
@pytest.mark.parametrize("momentum", [0.1, 1.0, 0])
def test_what_may_be_left_out(momentum, affine):
    for training, running in ((True, True), (True, False), (False, True)):
        case = Case(
            dtype=torch.float64, training=training, running=running, affine=affine, biases=(),
            momentum=momentum, eps=1e-2,
        )  # fmt: skip
        inputs, dy = make(case)
        assert_close(run(function, inputs, dy, **case.variant), run_judge(case, inputs, dy))


@pytest.mark.parametrize("name", ["u", "bn_weight", "w1"])
def test_the_widest_dtype_carries_the_sums(name):
    """One tensor in float64 is enough; the results keep the dtypes of their arguments."""
    case = Case(pre="silu")
    inputs, dy = make(case)
    wide = {n: t if t is None else t.double() for n, t in inputs.items()}
    of_fcs = ("w1", "w2", "b1", "b2")
    widened = of_fcs if name == "w1" else (name,)
    mixed = {n: wide[n] if n in widened else t for n, t in inputs.items()}
    dy = dy.to(mixed["u"].dtype)
    results, exact = run(function, mixed, dy, **case.variant), run_judge(case, mixed, dy)
    for key, result in results.items():
        origin = mixed["u" if key == "y" else key if key in RUNNING else key[1:]]
        assert result.dtype == origin.dtype, key
        tolerance = 1e-10 if result.dtype == torch.float64 else torch.finfo(result.dtype).eps
        scale = exact[key].abs().max().item()
        torch.testing.assert_close(result.double(), exact[key], rtol=tolerance, atol=1e-10 * scale)


def test_an_empty_batch_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        case = Case((0, 5, 3, 4), dtype=torch.float64)
        inputs, dy = make(case)
        results = run(function, inputs, dy, **case.variant)
    expected = run(composed, inputs, dy, **case.variant)
    for name, value in expected.items():
        assert torch.equal(results[name], value), name
