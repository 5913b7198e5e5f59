"""Quantisation-aware training of an exported program (torchao's PT2E), which holds the ops.

The judge is the same program with the definition in the place of each op.
"""

import copy
import functools
import warnings

import pytest
import torch
from fused_twins import draw
from torch import nn

import se_kernels
from se_kernels import reference
from se_kernels.core import ops
from se_kernels.core.variants import Variant

pytest.importorskip("torchao", reason="needs torchao")
timm = pytest.importorskip("timm")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def network():
    """The layers, and a block of timm's fused: all after a norm, which is folded and trained."""
    from timm.models._efficientnet_blocks import DepthwiseSeparableConv

    se_layer = functools.partial(timm.layers.SEModule, rd_channels=4)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        se_kernels.SqueezeExcite(16),
        nn.Conv2d(16, 16, 3),
        se_kernels.BatchNormSqueezeExcite(16, post="relu"),
        DepthwiseSeparableConv(16, 16, se_layer=se_layer),
    )
    assert se_kernels.fuse(model, level="block").blocks
    return draw(model)


def prepared(model, x):
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    return prepare_qat_pt2e(torch.export.export(model, (x,)).module(), quantizer)


def with_definition(program):
    def forward(x, w1, w2, b1, b2, residual, *variant):
        variant = Variant(*variant[:-1])._asdict()
        return (reference.squeeze_excite(x, w1, w2, b1, b2, residual=residual, **variant),)

    program = copy.deepcopy(program)
    held = [node for node in program.graph.nodes if node.target is ops.forward]
    assert len(held) == 3
    for node in held:
        node.target = forward
    program.recompile()
    return program


def trained(program, x):
    """What two steps give: outputs, gradients, and the buffers after them."""
    optimizer, results = torch.optim.SGD(program.parameters(), 0.1), {}
    for step in range(2):
        x = x.detach().requires_grad_()
        y = program(x)
        optimizer.zero_grad()
        y.square().mean().backward()
        results |= {f"y {step}": y.detach(), f"dx {step}": x.grad}
        results |= {f"d{n} {step}": p.grad for n, p in program.named_parameters()}
        optimizer.step()
    return results | {name: b.clone() for name, b in program.named_buffers()}


def test_gradients_of_a_program_prepared_for_qat():
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*autograd kernel was not registered.*")
        program = prepared(network(), x)
        before = {name: b.clone() for name, b in program.named_buffers()}
        judge = with_definition(program)
        found, expected = trained(program, x), trained(judge, x)
    assert found.keys() == expected.keys()
    largest = max(g.abs().max() for name, g in expected.items() if name[0] == "d")
    for name, value in expected.items():
        # a number that falls on the other side of a rounding is one of 255 levels off; a bias
        # before a norm has a gradient of rounding alone
        scale = torch.maximum(value.abs().max(), 1e-3 * largest)
        assert (found[name] - value).abs().max() <= scale / 255, name
    moved = [name for name in before if name.endswith(("running_mean", "running_var"))]
    assert len(moved) == 8
    assert not any(torch.equal(found[name], before[name]) for name in moved)
