"""The eager definition: against PyTorch's own modules, and against the equations written out."""

import itertools
import math

import pytest
import torch
from operator_cases import DTYPES, NAMES, Case, act_module, gate_module, make, run
from torch import nn

from se_kernels import reference
from se_kernels.core.precision import compute_dtype
from se_kernels.core.variants import ACTS, GATES, SQUEEZES

VARIANTS = [
    dict(squeeze=squeeze, act=act, gate=gate, residual=residual, post=post)
    for squeeze, act, gate in itertools.product(SQUEEZES, ACTS, GATES)
    for residual, post in [(False, "none"), (True, "none"), (False, "relu"), (True, "relu")]
]

# Every name of every choice at least once; act and gate in all their pairs, since they meet in s.
CHOICES = [
    *[dict(act=act, gate=gate) for act, gate in itertools.product(ACTS, GATES)],
    *[dict(squeeze=squeeze, act="silu") for squeeze in SQUEEZES],
    dict(act="silu", biases=()),
    dict(act="silu", residual=True),
    dict(act="silu", residual=True, post="relu"),
    dict(act="silu", squeeze="avgmax", post="relu"),
]


def spell(choice):
    return "-".join(str(value) for value in choice.values())


class FromModules(nn.Module):
    """timm's SEModule, pooling by torch's modules, with a residual and a ReLU after it."""

    def __init__(self, case, w1, w2, b1, b2, **_):
        super().__init__()
        self.average = nn.AdaptiveAvgPool2d(1)
        self.maximum = nn.AdaptiveMaxPool2d(1)
        self.squeeze = case.squeeze
        channels, reduced = case.shape[1], case.reduced
        self.fc1 = nn.Conv2d(channels, reduced, 1, bias=b1 is not None)
        self.act = act_module(case.act, case.act_slope)
        self.fc2 = nn.Conv2d(reduced, channels, 1, bias=b2 is not None)
        self.gate = gate_module(case.gate)
        self.post = nn.ReLU() if case.post == "relu" else nn.Identity()
        self.to(w1.dtype)
        for parameter, value in (
            (self.fc1.weight, w1),
            (self.fc2.weight, w2),
            (self.fc1.bias, b1),
            (self.fc2.bias, b2),
        ):
            if value is not None:
                parameter.data = value.view(parameter.shape)

    def forward(self, x, residual=None):
        if self.squeeze == "avgmax":
            z = 0.5 * self.average(x) + 0.5 * self.maximum(x)
        else:
            z = self.average(x) if self.squeeze == "avg" else self.maximum(x)
        y = x * self.gate(self.fc2(self.act(self.fc1(z))))
        return self.post(y if residual is None else y + residual)


def run_modules(case, inputs, dy):
    module = FromModules(case, **inputs)
    leaves = {name: inputs[name].detach().requires_grad_() for name in ("x",)}
    if case.residual:
        leaves["residual"] = inputs["residual"].detach().requires_grad_()
    y = module(**leaves)
    y.backward(dy)
    grads = {f"d{name}": t.grad for name, t in leaves.items()}
    grads["dw1"] = module.fc1.weight.grad.view(inputs["w1"].shape)
    grads["dw2"] = module.fc2.weight.grad.view(inputs["w2"].shape)
    if module.fc1.bias is not None:
        grads |= {"db1": module.fc1.bias.grad, "db2": module.fc2.bias.grad}
    return {"y": y.detach(), **grads}


@pytest.mark.parametrize("choice", VARIANTS, ids=spell)
def test_values_and_gradients_are_those_of_modules(choice):
    case = Case(dtype=torch.float64, **choice)
    inputs, dy = make(case)
    expected = run_modules(case, inputs, dy)
    results = run(reference.squeeze_excite, inputs, dy, **case.variant)
    assert results.keys() == expected.keys()
    # A few roundings of float64; nn.Hardsigmoid's own gradient carries 1/6 rounded to float32.
    relative = 1e-7 if case.gate == "hardsigmoid" else 1e-12
    for name, result in results.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(
            result, expected[name], rtol=0, atol=relative * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("choice", CHOICES, ids=spell)
def test_every_dtype_is_rounded_once(choice, dtype):
    """Values: as the modules in a wider dtype, then one rounding. Never more than that."""
    case = Case(dtype=dtype, **choice)
    inputs, dy = make(case)
    wide = {name: None if t is None else t.double() for name, t in inputs.items()}
    expected = run_modules(case, wide, dy.double())["y"]
    y = run(reference.squeeze_excite, inputs, dy, need=[], **case.variant)["y"]
    assert y.dtype == dtype
    # Half a spacing of y's dtype; and a few roundings of the float32 (float64) sums before it.
    sums = torch.finfo(compute_dtype(inputs["x"], inputs["w1"])).eps
    allowed = 0.51 * torch.finfo(dtype).eps * expected.abs() + 32 * sums * expected.abs().max()
    assert ((y.double() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_in_the_widest_dtype(dtype, weight_dtype):
    x, w = torch.empty(0, dtype=dtype), torch.empty(0, dtype=weight_dtype)
    expected = torch.float64 if torch.float64 in (dtype, weight_dtype) else torch.float32
    assert compute_dtype(x, w) == expected


# --- the equations, written out ------------------------------------------------------------------


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def clamp(v, low, high):
    return max(low, min(high, v))


ACT_EQUATIONS = {
    "relu": lambda v: max(0.0, v),
    "silu": lambda v: v * sigmoid(v),
    "gelu": lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2,
    "gelu_tanh": lambda v: v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / 2,
    "hardswish": lambda v: v * clamp(v + 3, 0, 6) / 6,
    "leaky_relu": lambda v: v if v > 0 else 0.2 * v,
    "identity": lambda v: v,
}
GATE_EQUATIONS = {
    "sigmoid": sigmoid,
    "hardsigmoid": lambda v: clamp(v / 6 + 0.5, 0, 1),
    "tanh": math.tanh,
    "relu": lambda v: max(0.0, v),
}


def written_out(case, x, w1, w2, b1, b2, residual):
    """Equations 2 to 4 over nested lists; x[n][c][i][j], w1[j][c], w2[c][j]."""
    images, channels, height, width = case.shape
    y = [[[[0.0] * width for _ in range(height)] for _ in range(channels)] for _ in range(images)]
    for n in range(images):
        z = []
        for c in range(channels):
            pixels = [x[n][c][i][j] for i in range(height) for j in range(width)]
            mean, peak = sum(pixels) / (height * width), max(pixels)
            z.append({"avg": mean, "max": peak, "avgmax": (mean + peak) / 2}[case.squeeze])
        h = []
        for j in range(case.reduced):
            a = sum(w1[j][c] * z[c] for c in range(channels)) + (b1[j] if b1 else 0)
            h.append(ACT_EQUATIONS[case.act](a))
        for c in range(channels):
            e = sum(w2[c][j] * h[j] for j in range(case.reduced)) + (b2[c] if b2 else 0)
            s = GATE_EQUATIONS[case.gate](e)
            for i in range(height):
                for j in range(width):
                    value = s * x[n][c][i][j] + (residual[n][c][i][j] if residual else 0)
                    y[n][c][i][j] = max(0.0, value) if case.post == "relu" else value
    return y


@pytest.mark.parametrize("choice", VARIANTS, ids=spell)
def test_values_are_the_equations(choice):
    case = Case(shape=(2, 3, 2, 2), reduced=2, dtype=torch.float64, **choice)
    inputs, _ = make(case)
    lists = {name: None if t is None else t.tolist() for name, t in inputs.items()}
    expected = torch.tensor(written_out(case, **lists), dtype=torch.float64)
    y = reference.squeeze_excite(**inputs, **case.variant)
    # s moves y by a few roundings of float64; the values are below 100
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)


# --- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", CHOICES, ids=spell)
def test_derivatives(choice):
    case = Case(shape=(2, 3, 2, 2), reduced=2, dtype=torch.float64, **choice)
    inputs, _ = make(case)
    present = [name for name in NAMES if inputs[name] is not None]

    def block(*tensors):
        arguments = {**inputs, **dict(zip(present, tensors, strict=True))}
        return reference.squeeze_excite(**arguments, **case.variant)

    leaves = [inputs[name].detach().requires_grad_() for name in present]
    assert torch.autograd.gradcheck(block, leaves)
    assert torch.autograd.gradgradcheck(block, leaves)


def test_autocast_changes_nothing():
    case = Case(residual=True)
    inputs, _ = make(case)
    expected = reference.squeeze_excite(**inputs, **case.variant)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = reference.squeeze_excite(**inputs, **case.variant)
    assert y.dtype == torch.float32
    assert torch.equal(y, expected)
