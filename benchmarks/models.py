"""The models that ``--model`` names: timm's, torchvision's, and those of ``se_kernels.models``."""

import difflib
import functools
import math

import torch
from torch import nn

from se_kernels.models import create, names
from se_kernels.models.network import Network

from .torchvision_ops import import_torchvision

LIBRARIES = ("timm", "torchvision")
IMAGE_SIZE = 224  # where the library does not say
OWN_IMAGE_SIZES = {  # of those of ``se_kernels.models`` that are not for 224×224
    "inception_resnet_v2": 299,
    **dict.fromkeys(
        ("resnet110", "resnet164", "wrn_16_8", "shake_shake_26_2x96d", "shake_even_29_2x4x64d"), 32
    ),
}
MIN_IMAGE_SIZE = 32
STRIDE = 32  # of the last maps
RANDOM = {  # what is random in training: class → attribute, and its value where nothing is
    "DropPath": ("drop_prob", 0.0),
    "StochasticDepth": ("p", 0.0),
    **{cls.__name__: ("p", 0.0) for cls in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)},
    "Mix": ("how", ("even", "even")),  # of the Shake networks
}


class ModelError(Exception):
    """A model that cannot be had, or has nothing to measure; the text is for the user."""


def check(name: str) -> None:
    """Nothing, where ``name`` is ``timm/NAME``, ``torchvision/NAME`` or one of
    ``se_kernels.models``, and can be built here.

    Raises:
        ModelError: another form, a library that is not installed, or a name it does not know.
    """
    if is_paper_model(name):
        return
    library, model = _parts(name)
    imported = _imported(library)
    if library == "timm":
        if imported.is_model(model):
            return
        known = imported.list_models()
    else:
        known = imported.list_models(module=imported)
        if model in known:
            return
    close = difflib.get_close_matches(model, known, n=3)
    hint = f"; did you mean {', '.join(f'{library}/{c}' for c in close)}?" if close else ""
    raise ModelError(f"{library} has no model {model!r}{hint}")


def why_not(name: str) -> str | None:
    """The text of the error that ``check`` raises, or None."""
    try:
        check(name)
    except ModelError as error:
        return str(error)
    return None


def is_paper_model(name: str) -> bool:
    """Whether it is a network of ``se_kernels.models``."""
    return name in names()


def image_size(name: str) -> int:
    """Height and width that the model is made for: timm's and ours, 224 of torchvision's."""
    if is_paper_model(name):
        return OWN_IMAGE_SIZES.get(name, IMAGE_SIZE)
    library, model = _parts(name)
    if library != "timm":
        return IMAGE_SIZE
    config = _imported("timm").get_pretrained_cfg(model)
    return config.input_size[1] if config else IMAGE_SIZE


def min_image_size(name: str) -> int:
    """The fewest pixels, in height and width, that the model takes: ours say, others 32."""
    return max(MIN_IMAGE_SIZE, _on_meta(name).min_size) if is_paper_model(name) else MIN_IMAGE_SIZE


@functools.cache
def normed(name: str, image_size: int) -> int:
    """How many numbers per channel and image the norm that sees the fewest is given in training.

    Counted in ours; in others, and in the paper's pair, whose name is empty, those of the last
    maps.
    """
    if not is_paper_model(name):
        return math.ceil(image_size / STRIDE) ** 2
    network, seen = _on_meta(name), []
    hooks = [
        module.register_forward_hook(lambda _, inputs, y: seen.append(y[0, 0].numel()))
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    network(torch.empty(1, network.in_channels, image_size, image_size, device="meta"))
    for hook in hooks:
        hook.remove()
    return min(seen)


@functools.cache
def _on_meta(name: str) -> Network:
    """One of ours without numbers and without SE blocks, in eval mode."""
    with torch.device("meta"):
        return create(name, se=None).eval()


def build(name: str, classes: int, seed: int) -> nn.Module:
    """A library's model in float32 on the CPU, initialised from ``seed``; nothing is dropped at
    random."""
    library, model = _parts(name)
    imported = _imported(library)
    torch.manual_seed(seed)
    if library == "timm":
        built = imported.create_model(model, pretrained=False, num_classes=classes)
    else:
        built = imported.get_model(model, weights=None, num_classes=classes)
    drop_nothing(built)
    return built


def drop_nothing(model: nn.Module) -> None:
    """Nothing random in training: else two models of the same weights would differ in it."""
    for module in model.modules():
        if type(module).__name__ in RANDOM:
            setattr(module, *RANDOM[type(module).__name__])
        if isinstance(getattr(module, "drop_rate", None), float):  # timm's, before its classifier
            module.__dict__["drop_rate"] = 0.0


def _parts(name: str) -> tuple[str, str]:
    library, _, model = name.partition("/")
    if library not in LIBRARIES or not model:
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ModelError(
            f"expected {', '.join(f'{library}/NAME' for library in LIBRARIES)} or one of"
            f" {', '.join(names())}; got {name!r}{hint}"
        )
    return library, model


def _imported(library: str):
    """timm, or torchvision.models."""
    try:
        import_torchvision()  # timm's needs it too
        if library == "timm":
            import timm

            return timm
        from torchvision import models

        return models
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{library} models need {error.name}, which is not installed:"
            " pip install timm torchvision, or 'se_kernels[bench]'"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{library} cannot be imported: {reason}") from error
