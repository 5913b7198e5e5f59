"""The short way of an inference gives what the long way gives, and stands back where it must."""

import sys

import pytest
import torch
import torch.autograd.forward_ad as fwad
from hypothesis import given
from hypothesis import strategies as st
from operator_cases import DTYPES, LAYOUTS, Case, NoInputs, make
from ops_called import OpsCalled
from random_cases import placed_cases, random_cases

import se_kernels
from se_kernels.core import fast_path
from se_kernels.core.variants import ACTS, GATES, POSTS, SQUEEZES

pytestmark = [
    pytest.mark.native,
    pytest.mark.usefixtures("poisoned_outputs"),
    pytest.mark.skipif(
        se_kernels.available_backends()["cpu"] is not None, reason="the cpu backend was not built"
    ),
]


@pytest.fixture
def taken(monkeypatch):
    """Whether each call of the block went the short way, in order."""
    calls, is_open, run = [], fast_path.can_bypass_dispatcher, fast_path.run

    def watched_open(*arguments):
        calls.append(False)
        return is_open(*arguments)

    def watched_run(*arguments):
        y = run(*arguments)
        calls[-1] = y is not None
        return y

    monkeypatch.setattr(fast_path, "can_bypass_dispatcher", watched_open)
    monkeypatch.setattr(fast_path, "run", watched_run)
    return calls


def both_ways(**arguments):
    """y the way the library goes by itself, and y the long way."""
    with torch.no_grad():
        y = se_kernels.squeeze_excite(**arguments)
    with OpsCalled() as called, torch.no_grad():
        long = se_kernels.squeeze_excite(**arguments)
    assert called.names == ["inference"]
    return y, long


def assert_same(y, long):
    assert y.dtype == long.dtype
    assert y.stride() == long.stride()
    torch.testing.assert_close(y, long, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_variant_goes_the_short_way(taken, dtype, layout):
    for squeeze, act, gate, post in zip(SQUEEZES * 3, ACTS, GATES * 2, POSTS * 4, strict=False):
        for residual in (False, True):
            case = Case(
                dtype=dtype,
                weight_dtype=torch.float32 if residual else None,
                squeeze=squeeze,
                act=act,
                gate=gate,
                post=post,
                residual=residual,
                layout=layout,
            )
            inputs, _ = make(case)
            assert_same(*both_ways(**inputs, **case.variant))
            assert taken[-2:] == [True, False]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@random_cases(100, "cpu")
@given(data=st.data())
def test_random_cases(dtype, data):
    placed = data.draw(placed_cases(dtype))
    try:
        inputs, _ = placed.laid_out(*make(placed.case))
    except NoInputs:
        return
    assert_same(*both_ways(**inputs, **placed.case.variant))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 1, 4, 1), (1, 7, 1, 5), (2, 33, 1, 1), (1, 1, 8, 8)]
)
def test_sizes_of_one(taken, shape):
    for layout in LAYOUTS:
        inputs, _ = make(Case(shape=shape, reduced=1, layout=layout, residual=True))
        inputs |= {"w1": inputs["w1"][..., None, None], "w2": inputs["w2"][..., None, None]}
        assert_same(*both_ways(**inputs))
        assert taken[-2:] == [True, False]


def arguments(**changed):
    x = torch.randn(2, 4, 3, 3)
    return {"x": x, "w1": torch.randn(4, 4), "w2": torch.randn(4, 4), **changed}


class Subclass(torch.Tensor):
    pass


ORDINARY = torch.randn(2, 4, 3, 3)
NEGATED = torch.randn(2, 4, 3, 3, dtype=torch.complex64).conj().imag
assert NEGATED.is_neg()


@pytest.mark.parametrize(
    "changed",
    [
        {"x": ORDINARY.mT},
        {"x": ORDINARY[:, :, ::2]},
        {"x": torch.randn(2, 9, 3, 3)[:, 1:5]},
        {"x": ORDINARY[:0]},
        {"x": ORDINARY[..., :0]},
        {"x": NEGATED},
        {"residual": torch._neg_view(ORDINARY)},
        {"w2": torch._neg_view(torch.eye(4))},
        {"x": torch._efficientzerotensor((2, 4, 3, 3))},
        {"x": ORDINARY.as_subclass(Subclass)},
        {"residual": ORDINARY.contiguous(memory_format=torch.channels_last)},
        {"w1": torch.randn(4, 4).T},
        {"b1": torch.randn(8)[::2]},
        {"w1": torch.randn(0, 4), "w2": torch.randn(4, 0)},
        {"act": "leaky_relu", "act_slope": 1},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_what_goes_the_long_way(taken, changed):
    with torch.no_grad():
        y = se_kernels.squeeze_excite(**arguments(**changed))
    assert taken == [False]
    exact = se_kernels.reference.squeeze_excite(**arguments(**changed))
    assert y.shape == exact.shape


@pytest.mark.parametrize("changed", [{"x": NEGATED}, {"residual": torch._neg_view(ORDINARY)}])
def test_a_negation_put_off_is_not_lost(changed):
    given_, resolved = (
        arguments(**{name: f(t) for name, t in changed.items()})
        for f in (lambda t: t, torch.resolve_neg)
    )
    resolved |= {name: given_[name] for name in given_ if name not in changed}
    with torch.no_grad():
        y, exact = (se_kernels.squeeze_excite(**a) for a in (given_, resolved))
    torch.testing.assert_close(y, exact, rtol=0, atol=0)


@pytest.mark.parametrize(
    "changed",
    [
        {"x": ORDINARY[0]},
        {"x": ORDINARY.int()},
        {"x": ORDINARY.to_sparse()},
        {"x": 3},
        {"x": None},
        {"w1": None},
        {"w1": torch.randn(4, 5)},
        {"w1": torch.randn(4, 4, 3, 3)},
        {"w1": torch.randn(4)},
        {"w1": torch.randn(4, 4, device="meta")},
        {"w2": torch.randn(5, 4)},
        {"w2": torch.randn(4, 4).double()},
        {"b1": torch.randn(5)},
        {"b2": torch.randn(4, 1)},
        {"b2": torch.randn(4).half()},
        {"residual": torch.randn(2, 4, 3, 2)},
        {"residual": ORDINARY.half()},
        {"residual": torch.randn(2, 4, 9)},
        {"squeeze": "sum"},
        {"squeeze": None},
        {"act": "Relu"},
        {"act_slope": "steep"},
        {"gate": 3},
        {"post": "gelu"},
        {"backend": "fpga"},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_bad_input_is_told_as_with_gradients(taken, changed):
    told = []
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled), pytest.raises((TypeError, ValueError)) as error:
            se_kernels.squeeze_excite(**arguments(**changed))
        told.append((error.type, str(error.value)))
    assert told[0] == told[1]
    assert taken == [False, False]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_who_must_see_the_op(taken):
    """Autograd, another backend, modes, tracers, transforms and the profiler: the long way."""
    inputs = arguments()
    block = se_kernels.squeeze_excite
    x = inputs.pop("x")

    block(x, **inputs)  # gradients are enabled
    with torch.no_grad():
        block(x, **inputs, backend="reference")
        block(x, **inputs, backend="cpu")
        block(x, **inputs)
        assert taken == [False, False, True, True]
        taken.clear()
        with OpsCalled() as called:
            block(x, **inputs)
        assert called.names == ["inference"]
        torch.func.vmap(lambda x: block(x, **inputs))(x[None])
        with fwad.dual_level():
            block(x, **inputs)
        with torch.profiler.profile() as profile:
            block(x, **inputs)
        assert "se_kernels::inference" in {event.key for event in profile.key_averages()}
        graph = torch.jit.trace(lambda x: block(x, **inputs), x, check_trace=False).graph
        assert "se_kernels::inference" in str(graph)
        assert taken == [False] * 5
    with torch.inference_mode():
        assert block(x, **inputs).is_inference()
        assert taken[-1]


def test_a_default_backend_is_kept(taken, monkeypatch):
    monkeypatch.setattr(se_kernels.core.dispatch, "DEFAULT", "reference")
    inputs = arguments()
    with torch.no_grad():
        y = se_kernels.squeeze_excite(**inputs)
        assert taken == [False]
        assert torch.equal(y, se_kernels.reference.squeeze_excite(**inputs))


def test_a_compiled_inference_has_no_graph_break(taken):
    inputs = arguments()
    with torch.no_grad():
        compiled = torch.compile(se_kernels.squeeze_excite, fullgraph=True)(**inputs)
        assert_same(compiled, se_kernels.squeeze_excite(**inputs))


def test_nothing_is_kept(taken):
    """The tensors read natively are released."""
    inputs = arguments()
    before = {name: sys.getrefcount(t) for name, t in inputs.items()}
    with torch.no_grad():
        for _ in range(3):
            y = se_kernels.squeeze_excite(**inputs)
    assert taken == [True] * 3
    assert {name: sys.getrefcount(t) for name, t in inputs.items()} == before
    assert sys.getrefcount(y) == 2
