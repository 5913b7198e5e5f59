"""The registered ops in a graph: a program that holds them has eager's gradients, with no warning.

Each case is a network that is held as a graph in one way, and run as that graph. The judge is the
network itself with the block by its definition.
"""

import copy
import warnings

import pytest
import torch
from ops_called import OpsCalled
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from se_kernels import BatchNormSqueezeExcite, SqueezeExcite
from se_kernels.core import ops
from se_kernels.core.variants import Variant


@pytest.fixture(scope="module")
def backend():
    """One: what the graph holds, and its gradients, are the same of each."""
    return "cpu"


BLOCKS = {
    "se": lambda **o: SqueezeExcite(8, post="relu", bias=True, **o),
    "norm": lambda **o: BatchNormSqueezeExcite(8, post="relu", **o),
    "norm in evaluation mode": lambda **o: BatchNormSqueezeExcite(8, pre="silu", **o).eval(),
    "excitation with a norm": lambda **o: SqueezeExcite(8, norm_layer=nn.BatchNorm2d, **o),
}
OPS = {
    "se": ["forward"],
    "norm": ["forward"],  # exported for training, after torch's own batch norm
    "norm in evaluation mode": ["norm_forward"],
    "excitation with a norm": ["squeeze", "scale"],
}


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*autograd kernel was not registered.*")
        yield


@pytest.fixture(params=BLOCKS)
def networks(request, backend):
    """A network on ``backend``, its twin by the definition, an image, and the graph's ops."""
    made = []
    for name in (backend, "reference"):
        torch.manual_seed(0)
        block = BLOCKS[request.param](backend=name)
        made.append(nn.Sequential(nn.Conv2d(3, 8, 1), block, nn.Conv2d(8, 2, 1)))
    return *made, torch.randn(2, 3, 4, 5), OPS[request.param]


def trained(network, function, x):
    """By name: y of ``function``, the gradients of x and the parameters, the buffers after it."""
    x = x.clone().requires_grad_()
    y = function(x)
    wanted = {"x": x, **dict(network.named_parameters())}
    gradients = torch.autograd.grad(y.square().sum(), [*wanted.values()])
    named = zip(wanted, gradients, strict=True)
    return {"y": y.detach(), **dict(named)}, dict(network.named_buffers())


def assert_close(results, expected):
    (found, buffers), (exact, exact_buffers) = results, expected
    assert found.keys() == exact.keys()
    assert all(t.abs().max() > 0 for t in exact.values())
    for name, value in exact.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    for name, buffer in buffers.items():  # an exported program drops those that it does not read
        torch.testing.assert_close(buffer, exact_buffers[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_trains(networks, strict):
    network, twin, x, held = networks
    program = torch.export.export(network, (x,), strict=strict)
    names = [str(node.target).split(".")[-2] for node in program.graph.nodes if node.op != "output"
             and str(node.target).startswith("se_kernels")]  # fmt: skip
    assert names == held
    module = program.module()
    assert_close(trained(module, module, x), trained(twin, twin, x))


def test_one_exported_without_gradients_trains(networks):
    """It holds the ops of an inference."""
    network, twin, x, _ = networks
    with torch.no_grad():
        module = torch.export.export(network, (x,)).module()
    assert_close(trained(module, module, x), trained(twin, twin, x))


@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_a_traced_gradient(networks, pre_dispatch):
    """Forces, as of an energy: the graph holds forward and backward, and runs with gradients on."""
    network, twin, x, _ = networks

    def forces(network):
        def function(t):
            return torch.autograd.grad(network(t.requires_grad_()).square().sum(), t)[0]

        return function

    graph = make_fx(forces(network), pre_dispatch=pre_dispatch)(x.clone())
    result = graph(x.clone())
    torch.testing.assert_close(result, forces(twin)(x.clone()), rtol=1e-4, atol=1e-5)


def test_a_traced_gradient_may_be_differentiated_again(networks):
    network, twin, x, _ = networks

    def penalty(network):
        def function(t):
            (g,) = torch.autograd.grad(
                network(t.requires_grad_()).square().sum(), t, create_graph=True
            )
            return g.square().sum()

        return function

    x, gradients = x.double(), []
    for double in (network.double(), twin.double()):
        graph = make_fx(penalty(double))(x.clone())
        gradients.append(torch.autograd.grad(graph(x), next(double.parameters()))[0])
    torch.testing.assert_close(*gradients)


def test_compiled_autograd(networks):
    network, twin, x, _ = networks

    @torch.compile(backend="eager")
    def step(x):
        y = network(x)
        y.square().sum().backward()
        return y

    with torch._dynamo.config.patch(compiled_autograd=True):
        y = step(x)
    expected = twin(x)
    expected.square().sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_functionalised(networks):
    network, twin, x, _ = networks
    function = torch.func.functionalize(network)
    assert_close(trained(network, function, x), trained(twin, twin, x))


@pytest.mark.parametrize("post", ["none", "relu"])
def test_what_has_no_gradient(backend, post):
    """z, a, s and the mask are numbers of the backward pass, and scale's mask is kept on demand."""
    x, w1, w2 = (torch.randn(size, requires_grad=True) for size in ((2, 8, 4, 5), (4, 8), (8, 4)))
    variant = Variant(post=post)
    outputs = ops.forward(x, w1, w2, None, None, None, *variant, backend)
    assert [t.requires_grad for t in outputs] == [True, *[False] * 4]
    s = outputs[-1].detach().requires_grad_()
    for keep in {False, post == "relu"}:
        y, mask = ops.scale(x, s, None, post, keep, backend)
        assert y.requires_grad
        assert not mask.requires_grad
        assert mask.shape == ((2, 8, 3) if keep else (0,))


@pytest.mark.parametrize("post", ["none", "relu"])
def test_opcheck_with_gradients(backend, post):
    """Against AOTAutograd's trace of them too."""
    torch.manual_seed(0)
    sizes = (2, 8, 4, 5), (4, 8), (8, 4), (2, 8, 4, 5), (8,), (8,), (2, 8)
    x, w1, w2, residual, weight, bias, s = (torch.rand(size, requires_grad=True) for size in sizes)
    mean, var = torch.zeros(8), torch.ones(8)
    fcs, variant = (w1, w2, None, None, residual), Variant(post=post)
    norm = x, weight, bias, mean, var
    for op, arguments in (
        (ops.forward, (x, *fcs, *variant)),
        (ops.inference, (x, *fcs, *variant)),
        (ops.squeeze, (x, "avgmax")),
        (ops.scale, (x, s, residual, post, post == "relu")),
        (ops.norm_forward, (*norm, None, *fcs, True, 0.1, 1e-5, "silu", *variant[1:], False)),
        (ops.norm_inference, (*norm, 1e-5, *fcs, "silu", *variant[1:])),
    ):
        torch.library.opcheck(op, (*arguments, backend))


def test_a_direct_call_of_the_gradient_op_is_not_differentiable(backend):
    x, w1, w2 = (torch.randn(size, requires_grad=True) for size in ((2, 8, 4, 5), (4, 8), (8, 4)))
    variant = Variant()
    y, _, *small = ops.forward(x, w1, w2, None, None, None, *variant, backend)
    dx, *_ = ops.backward(
        torch.ones_like(y), x, w1, w2, None, *small, *variant[:-1], [True] + [False] * 5, backend
    )
    with pytest.raises(
        RuntimeError, match=r"backward.* is not differentiable: .*create_graph=True"
    ):
        dx.sum().backward()


def test_the_statistics_of_a_graph_move_once(backend):
    torch.manual_seed(0)
    network = BatchNormSqueezeExcite(8, backend=backend)
    twin = copy.deepcopy(network)
    x = torch.randn(2, 8, 4, 5)
    module = torch.export.export(network, (x,)).module()
    with OpsCalled() as called:
        module(x).sum().backward()
    assert called.names.count("forward") == 1
    twin(x)
    theirs = dict(twin.named_buffers())
    for name, buffer in module.named_buffers():
        torch.testing.assert_close(buffer, theirs[name])
