"""torch.compile(fullgraph=True) forward and backward, and torch.export, against the uncompiled."""

import copy
import io
from functools import partial

import pytest
import torch
from operator_cases import Case, make, run
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from se_kernels import SqueezeExcite

# The graph is the same whichever backend it names.
pytestmark = pytest.mark.sampled(every=0, on_host=0)


TAIL = dict(post="relu", residual=True)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_same(results, expected):
    """The op runs as it would uncompiled; only sums around it may be taken in another order.

    Those are weight and bias gradients, sums over images: some roundings of float32 or float64.
    """
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        assert results[name].dtype == value.dtype, name
        assert results[name].stride() == value.stride(), name
        if name in ("y", "dx", "dresidual"):
            assert torch.equal(results[name], value), name
        else:
            torch.testing.assert_close(results[name], value, msg=partial("{}: {}".format, name))


def compare(kernel, case, **options):
    inputs, dy = make(case)
    compiled = torch.compile(kernel, fullgraph=True, **options)
    assert_same(run(compiled, inputs, dy, **case.variant), run(kernel, inputs, dy, **case.variant))


# --- torch.compile: inductor ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        Case(shape=(3, 16, 6, 5), reduced=4, **TAIL),
        Case(shape=(3, 16, 6, 5), reduced=4, layout="channels_last", dtype=torch.bfloat16),
    ],
    ids=["tail", "channels_last bfloat16"],
)
def test_function(kernel, case):
    compare(kernel, case)


class Network(nn.Module):
    """Convolutions around the block, so that the compiler may lay x and dy out as it likes."""

    def __init__(self, **options):
        super().__init__()
        self.before = nn.Conv2d(3, 16, 3, padding=1)
        self.shortcut = nn.Conv2d(3, 16, 1)
        self.se = SqueezeExcite(16, rd_channels=4, **options)
        self.after = nn.Conv2d(16, 8, 3)

    def forward(self, images):
        x = self.before(images)
        return self.after(self.se(x, self.shortcut(images)))


def train(network, images, called=None):
    """The output of ``called``, the network or a compiled form of it, and every gradient."""
    images = images.detach().requires_grad_()
    torch._dynamo.mark_dynamic(images, 0)
    network.zero_grad()
    y = (network if called is None else called)(images)
    y.square().sum().backward()
    named = {name: p.grad.clone() for name, p in network.named_parameters()}
    return {"y": y.detach(), "images": images.grad, **named}


def assert_close_gradients(results, expected):
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        # convolutions sum in another order once compiled: float32 roundings relative to the largest
        torch.testing.assert_close(
            results[name] / value.abs().max(),
            value / value.abs().max(),
            rtol=0,
            atol=1e-5,
            msg=partial("{}: {}".format, name),
        )


def test_network_trains_over_batch_sizes_without_recompilation(backend):
    torch.manual_seed(0)
    network = Network(post="relu", bias=True, backend=backend)
    compiled = torch.compile(network, fullgraph=True)
    for batch in (5, 2, 7, 15):  # from 16 on torch's own convolution has a guard
        images = torch.randn(batch, 3, 8, 9)
        stance = "default" if batch == 5 else "fail_on_recompile"
        with torch.compiler.set_stance(stance):
            results = train(network, images, compiled)
        assert_close_gradients(results, train(network, images))


def test_inference_over_batch_sizes_without_recompilation(kernel):
    compiled = torch.compile(kernel, fullgraph=True, dynamic=True)
    for batch in (7, 2, 5, 64):  # the first differs from every other size, or dynamo ties the two
        case = Case(shape=(batch, 16, 6, 5), reduced=4, **TAIL)
        inputs, _ = make(case)
        stance = "default" if batch == 7 else "fail_on_recompile"
        with torch.no_grad(), torch.compiler.set_stance(stance):
            y = compiled(**inputs, **case.variant)
        assert torch.equal(y, kernel(**inputs, **case.variant))


# --- torch.compile: the traced graphs alone, without inductor's code -----------------------------


@pytest.mark.parametrize(
    "case",
    [
        Case(squeeze="max", act="leaky_relu", act_slope=0.3, gate="tanh"),
        Case(squeeze="avgmax", act="gelu_tanh", gate="hardsigmoid", biases=(), **TAIL),
        Case(dtype=torch.float64, layout="channels_last", **TAIL),
        Case(dtype=torch.float16, weight_dtype=torch.float32, residual=True),
        Case(expanded=(2, 3)),
        Case(shape=(2, 5, 1, 1)),
    ],
    ids=["leaky", "avgmax", "float64", "float16", "expanded", "pixel"],
)
def test_traced_function(kernel, case):
    compare(kernel, case, backend="aot_eager")


def test_batch_sizes_share_one_graph(kernel):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(kernel, fullgraph=True, dynamic=True, backend=counter)
    compilations = []
    for batch in (7, 2, 5, 64):
        case = Case(shape=(batch, 8, 4, 5), **TAIL)
        inputs, dy = make(case)
        expected = run(kernel, inputs, dy, **case.variant)
        assert_same(run(compiled, inputs, dy, **case.variant), expected)
        compilations.append(counter.frame_count)
    assert len(set(compilations)) == 1


def test_a_batch_size_that_changes_becomes_dynamic(kernel):
    """Nothing marked: the second size recompiles, and its graph serves every further one."""
    compiled = torch.compile(kernel, fullgraph=True, backend="aot_eager")
    for batch in (6, 7, 2, 64):
        case = Case(shape=(batch, 8, 4, 5), **TAIL)
        inputs, dy = make(case)
        stance = "default" if batch in (6, 7) else "fail_on_recompile"
        with torch.compiler.set_stance(stance):
            results = run(compiled, inputs, dy, **case.variant)
        assert_same(results, run(kernel, inputs, dy, **case.variant))


def test_image_sizes_and_layouts_share_the_compiled_function(kernel):
    """Each layout gets its own graph, as in eager convolutions, and none gets another's strides."""
    compiled = torch.compile(kernel, fullgraph=True, dynamic=True, backend="aot_eager")
    for layout in ("nchw", "channels_last", "nchw"):
        for height, width in ((4, 5), (7, 3)):
            case = Case(shape=(2, 8, height, width), layout=layout, **TAIL)
            inputs, dy = make(case)
            expected = run(kernel, inputs, dy, **case.variant)
            assert_same(run(compiled, inputs, dy, **case.variant), expected)


def test_slices(kernel):
    inputs, dy = make(Case(shape=(2, 8, 4, 5), **TAIL))
    wide = torch.randn(2, 16, 4, 5)

    def sliced(wide, **arguments):
        return kernel(wide[:, 4:12], **arguments)

    del inputs["x"]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        wide = wide.contiguous(memory_format=memory_format)
        results = []
        for function in (sliced, torch.compile(sliced, fullgraph=True, backend="aot_eager")):
            leaf = wide.detach().requires_grad_()
            y = function(leaf, **inputs, post="relu")
            y.backward(dy)
            results.append({"y": y.detach(), "dx": leaf.grad})
        assert_same(results[1], results[0])


def test_slopes_are_not_confused(kernel):
    compiled = torch.compile(kernel, fullgraph=True, backend="aot_eager")
    for slope in (0.1, 0.5, -0.25, 1):
        case = Case(act="leaky_relu", act_slope=slope)
        inputs, dy = make(case)
        expected = run(kernel, inputs, dy, **case.variant)
        assert_same(run(compiled, inputs, dy, **case.variant), expected)


def test_autocast(backend):
    torch.manual_seed(0)
    network = Network(post="relu", backend=backend)
    images = torch.randn(2, 3, 8, 9)

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        results, expected = train(network, images, compiled), train(network, images)
    for name, value in expected.items():
        value, result = value.float(), results[name].float()
        # a convolution's operands are rounded to bfloat16 at other places once traced
        assert (result - value).norm() <= 0.02 * value.norm(), name


def test_norm_layer(backend):
    torch.manual_seed(0)
    network = Network(norm_layer=nn.BatchNorm2d, backend=backend)
    twin = copy.deepcopy(network)
    images = torch.randn(4, 3, 8, 9)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    assert_close_gradients(train(network, images, compiled), train(twin, images))
    assert torch.equal(network.se.bn.running_var, twin.se.bn.running_var)


def test_bad_arguments_raise_the_same_error(kernel):
    compiled = torch.compile(kernel, backend="aot_eager")
    x, w1, w2 = torch.randn(2, 8, 3, 3), torch.randn(2, 7), torch.randn(8, 2)
    with pytest.raises(ValueError, match=r"w1: expected shape .*got \(2, 7\)"):
        compiled(x, w1, w2)


# --- torch.export --------------------------------------------------------------------------------


def export(network, arguments, dimensions, strict):
    with torch.no_grad():
        return torch.export.export(network, arguments, dynamic_shapes=dimensions, strict=strict)


@pytest.mark.parametrize(
    "layout, strict", [(torch.contiguous_format, False), (torch.channels_last, True)], ids=str
)
def test_export(backend, layout, strict):
    torch.manual_seed(0)
    network = Network(post="relu", backend=backend).eval().to(memory_format=layout)
    batch = torch.export.Dim("batch", min=1, max=4096)
    example = torch.randn(4, 3, 8, 9).contiguous(memory_format=layout)
    program = export(network, (example,), ({0: batch},), strict)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called.count("se_kernels.inference.default") == 1
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    for size in (1, 4, 9):
        images = torch.randn(size, 3, 8, 9).contiguous(memory_format=layout)
        with torch.no_grad():
            expected = network(images)
            for exported in (program, program.run_decompositions(), loaded):
                y = exported.module()(images)
                # the graph runs the same kernels in the same order
                assert torch.equal(y, expected)
                assert y.stride() == expected.stride()


def test_export_with_gradients_enabled(backend):
    network = SqueezeExcite(8, rd_channels=4, backend=backend).eval()
    dimensions = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    program = torch.export.export(network, (torch.randn(3, 8, 4, 5),), dynamic_shapes=dimensions)
    images = torch.randn(6, 8, 4, 5)
    with torch.no_grad():
        assert torch.equal(program.module()(images), network(images))


def test_export_of_two_tensors(backend):
    network = SqueezeExcite(8, rd_channels=4, post="relu", backend=backend).eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    example = torch.randn(3, 8, 4, 5), torch.randn(3, 8, 4, 5)
    program = export(network, example, ({0: batch}, {0: batch}), strict=False)
    x, residual = torch.randn(5, 8, 4, 5), torch.randn(5, 8, 4, 5)
    with torch.no_grad():
        assert torch.equal(program.module()(x, residual), network(x, residual))
    with pytest.raises(Exception, match=r"shape|size"):
        program.module()(x, residual[:2])
