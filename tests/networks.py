"""Networks on the meta device, their figures, and eager and fused twins with what they give."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def on_meta(build, *args, **options):
    """The network without numbers, in eval mode: shapes, parameters and flops only."""
    with torch.device("meta"):
        return build(*args, **options).eval()


def count_parameters(model):
    return sum(p.numel() for p in model.parameters())


def squeezed_elements(x_shape, *_, **__):
    return 2 * torch.Size(x_shape).numel()


def scaled_elements(*_, out_shape=None, **__):
    return 2 * torch.Size(out_shape).numel()


def giga_multiply_adds(model, elementwise, size=224):
    """torch's counter takes convolutions and matrix products, the classifier included, as 2 flops a
    multiply-add; with ``elementwise`` each pooled and each scaled element is one as well. It does
    not see into the fused operation: the model is an eager one on the meta device."""
    aten = torch.ops.aten
    mapping = {aten.mean: squeezed_elements, aten.mul: scaled_elements} if elementwise else None
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        model(torch.empty(1, model.in_channels, size, size, device="meta"))
    return counter.get_total_flops() / 2e9


def settle(model, images):
    """Running statistics of real activations, so that eval mode does not blow up."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # statistics become those of the batch
    training = model.training
    with torch.no_grad():
        model.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.train(training)


def twins(build, images, seed=0):
    """``build(fused=False)``, settled, and ``build(fused=True)`` with its state dict; float64."""
    torch.manual_seed(seed)
    eager = settle(build(fused=False).double(), images.double())
    torch.manual_seed(seed + 1)  # other initial values: only the state dict can make them equal
    fused = build(fused=True).double()
    fused.load_state_dict(eager.state_dict(), strict=True)
    return eager, fused


def logits_and_gradients(model, images, labels):
    """In float64: the logits, and the gradient of each parameter by its name."""
    model.zero_grad()
    torch.manual_seed(5)  # for dropout
    logits = model(images)
    nn.functional.cross_entropy(logits.double(), labels).backward()
    gradients = {name: p.grad.double() for name, p in model.named_parameters()}
    return logits.detach().double(), gradients


def distance(a, b):
    """Relative to the norm of ``b``, so that no tensor is small enough to pass unseen."""
    return ((a - b).norm() / b.norm()).item()


def assert_same_training_step(eager, fused, images, labels, null=()):
    """Logits, gradients and buffers of the two agree to float64 rounding.

    1e-16, grown by up to 50 layers with batch norm over 2 images of down to 2×2. ``null``: ends of
    the names of parameters whose gradients are zero but for rounding.
    """
    logits, gradients = logits_and_gradients(eager, images, labels)
    fused_logits, fused_gradients = logits_and_gradients(fused, images, labels)
    assert distance(fused_logits, logits) < 1e-11
    assert gradients.keys() == fused_gradients.keys()
    for name, gradient in gradients.items():
        if name.endswith(tuple(null)):
            assert max(gradient.norm(), fused_gradients[name].norm()) < 1e-9, name
            continue
        assert gradient.norm() > 0, name
        assert distance(fused_gradients[name], gradient) < 1e-9, name
    for (name, a), b in zip(eager.named_buffers(), fused.buffers(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-11, atol=1e-13), name


def pictures(count, size, channels=3, seed=7):
    """(count, channels, size, size) in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)


def batch(layout="nchw", size=64, channels=3):
    """Two images, float64, and their labels, below 10."""
    images = pictures(2, size, channels).contiguous(memory_format=LAYOUTS[layout])
    return images, torch.tensor([3, 8])
