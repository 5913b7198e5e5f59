"""torch.compile(fullgraph=True) of a batch norm with its block, and torch.export, against the
uncompiled; running statistics move in the graph."""

from functools import partial

import pytest
import torch
from norm_cases import RUNNING, Case, make, run
from torch import nn

import se_kernels

pytestmark = [pytest.mark.sampled(every=0, on_host=0), pytest.mark.usefixtures("one_thread")]

TAIL = dict(post="relu", residual=True)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_same(results, expected):
    """The ops run as they would uncompiled; only sums of N x C numbers between them may be taken in
    another order: some roundings, carried on into everything."""
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        assert results[name].dtype == value.dtype, name
        assert results[name].stride() == value.stride(), name
        sums = dict(rtol=1e-5, atol=1e-5 * value.abs().max().item())
        if value.dtype in (
            torch.bfloat16,
            torch.float16,
        ):  # one spacing, where a rounding tips over
            sums = dict(rtol=torch.finfo(value.dtype).eps, atol=1e-5)
        torch.testing.assert_close(results[name], value, **sums, msg=partial("{}: {}".format, name))


def compare(norm_kernel, case, **options):
    inputs, dy = make(case)
    compiled = torch.compile(norm_kernel, fullgraph=True, **options)
    results, expected = (run(f, inputs, dy, **case.variant) for f in (compiled, norm_kernel))
    assert_same(results, expected)
    if case.training:
        assert all((results[name] != inputs[name]).any() for name in RUNNING if case.running)


def test_by_inductor(norm_kernel):
    compare(norm_kernel, Case((3, 16, 6, 5), pre="silu", layout="channels_last", **TAIL))


@pytest.mark.parametrize(
    "case",
    [
        Case(pre="silu", dtype=torch.bfloat16, layout="channels_last", **TAIL),
        Case(training=False, **TAIL),
        Case(dtype=torch.float64, running=False, affine=(), biases=()),
        Case(dtype=torch.float16, weight_dtype=torch.float32, norm_dtype=torch.float32),
        Case(pre="relu", squeeze="avgmax"),
        Case(post="relu"),
    ],
    ids=["bfloat16", "frozen", "bare", "float16", "max", "no sum"],
)
def test_traced(norm_kernel, case):
    compare(norm_kernel, case, backend="aot_eager")


@pytest.mark.parametrize("training", [True, False])
def test_without_gradients(norm_kernel, training):
    case = Case(training=training, **TAIL)
    inputs, dy = make(case)
    compiled = torch.compile(norm_kernel, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        results = run(compiled, inputs, dy, (), **case.variant)
    assert_same(results, run(norm_kernel, inputs, dy, (), **case.variant))


def test_a_batch_size_that_changes_becomes_dynamic(norm_kernel):
    """Nothing marked: the second size recompiles, and its graph serves every further one."""
    compiled = torch.compile(norm_kernel, fullgraph=True, backend="aot_eager")
    for batch in (6, 7, 16):
        case = Case((batch, 8, 4, 5), **TAIL)
        inputs, dy = make(case)
        stance = "default" if batch in (6, 7) else "fail_on_recompile"
        with torch.compiler.set_stance(stance):
            results = run(compiled, inputs, dy, **case.variant)
        assert_same(results, run(norm_kernel, inputs, dy, **case.variant))


def test_image_sizes_and_layouts_share_the_compiled_function(norm_kernel):
    """Each layout gets its own graph, and none gets another's mask or strides."""
    compiled = torch.compile(norm_kernel, fullgraph=True, dynamic=True, backend="aot_eager")
    for layout, size in (("nchw", (4, 5)), ("channels_last", (7, 3))):
        case = Case((2, 8, *size), layout=layout, **TAIL)
        inputs, dy = make(case)
        expected = run(norm_kernel, inputs, dy, **case.variant)
        assert_same(run(compiled, inputs, dy, **case.variant), expected)


class Network(nn.Module):
    """Convolutions around the block, so that the compiler may lay u and dy out as it likes."""

    def __init__(self, backend):
        super().__init__()
        self.before = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.shortcut = nn.Conv2d(3, 16, 1)
        self.fc1, self.fc2 = nn.Linear(16, 4), nn.Linear(4, 16)
        self.after = nn.Conv2d(16, 8, 3)
        self.backend = backend

    def forward(self, images):
        bn = self.bn
        if bn.training:
            bn.num_batches_tracked.add_(1)
        y = se_kernels.batch_norm_squeeze_excite(
            self.before(images), bn.weight, bn.bias, bn.running_mean, bn.running_var,
            self.fc1.weight, self.fc2.weight, self.fc1.bias, self.fc2.bias, training=bn.training,
            momentum=bn.momentum, eps=bn.eps, pre="silu", residual=self.shortcut(images),
            post="relu", backend=self.backend,
        )  # fmt: skip
        return self.after(y)


@pytest.mark.parametrize("training", [True, False])
def test_a_network(backend, training):
    """Two steps in either mode: outputs, gradients and buffers."""
    twins = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = Network(backend).train(training)
        function = network
        if compiled:
            function = torch.compile(network, fullgraph=True, backend="aot_eager")
        held = []
        for step in range(2):
            generator = torch.Generator().manual_seed(step)
            images = torch.randn(4, 3, 8, 9, generator=generator, requires_grad=True)
            network.zero_grad()
            y = function(images)
            y.square().mean().backward()
            held += [y.detach(), images.grad, *(p.grad.clone() for p in network.parameters())]
        twins.append([*held, *(b.clone() for b in network.buffers())])
    for result, expected in zip(*twins, strict=True):
        # a convolution's sums in another order: float32 roundings
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_modes_are_not_confused(norm_kernel):
    compiled = torch.compile(norm_kernel, fullgraph=True, backend="aot_eager")
    for training, momentum in ((True, 0.1), (False, 0.1), (True, 0.5)):
        case = Case(training=training, momentum=momentum)
        inputs, dy = make(case)
        expected = run(norm_kernel, inputs, dy, **case.variant)
        assert_same(run(compiled, inputs, dy, **case.variant), expected)


def test_autocast(backend):
    torch.manual_seed(0)
    network = Network(backend)
    images = torch.randn(4, 3, 8, 9)
    results = []
    for function in (network, torch.compile(network, fullgraph=True, backend="aot_eager")):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = function(images)
        y.float().square().mean().backward()
        assert y.dtype == torch.bfloat16
        assert network.bn.weight.grad.dtype == torch.float32
        results.append([y.detach().float(), *(p.grad.clone() for p in network.parameters())])
    for result, expected in zip(*results, strict=True):
        # a convolution's operands are rounded to bfloat16 at other places once traced
        assert (result - expected).norm() <= 0.02 * expected.norm()


def test_bad_arguments_raise_the_same_error(norm_kernel):
    compiled = torch.compile(norm_kernel, backend="aot_eager")
    inputs, _ = make(Case())
    inputs["bn_weight"] = torch.ones(4)
    with pytest.raises(ValueError, match=r"bn_weight: expected shape \(C,\) = \(5,\), got \(4,\)"):
        compiled(**inputs, training=True)


def test_export(backend):
    network = Network(backend).eval()
    batch = torch.export.Dim("batch", min=2, max=4096)
    with torch.no_grad():
        program = torch.export.export(
            network, (torch.randn(4, 3, 8, 9),), dynamic_shapes=({0: batch},), strict=False
        )
        called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        assert called.count("se_kernels.norm_inference.default") == 1
        for size in (2, 4, 9):
            images = torch.randn(size, 3, 8, 9)
            assert torch.equal(program.module()(images), network(images))
