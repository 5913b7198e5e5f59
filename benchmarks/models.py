"""The models that ``--model`` names: timm's and torchvision's, with random weights."""

import difflib

import torch
from torch import nn

from .torchvision_ops import import_torchvision

LIBRARIES = ("timm", "torchvision")
IMAGE_SIZE = 224  # where the library does not say
DROPPED = {  # what drops at random: class → attribute that holds the probability
    "DropPath": "drop_prob",
    "StochasticDepth": "p",
    **{cls.__name__: "p" for cls in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)},
}


class ModelError(Exception):
    """A model that cannot be had, or has nothing to measure; the text is for the user."""


def check(name: str) -> None:
    """Nothing, where ``name`` is ``timm/NAME`` or ``torchvision/NAME`` and can be built here.

    Raises:
        ModelError: another form, a library that is not installed, or a name it does not know.
    """
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


def image_size(name: str) -> int:
    """Height and width that the model is made for: timm's own, 224 of torchvision's."""
    library, model = _parts(name)
    if library != "timm":
        return IMAGE_SIZE
    config = _imported("timm").get_pretrained_cfg(model)
    return config.input_size[1] if config else IMAGE_SIZE


def build(name: str, classes: int, seed: int) -> nn.Module:
    """The model in float32 on the CPU, initialised from ``seed``; nothing is dropped at random."""
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
    """Dropout and stochastic depth off: else two models of the same weights differ in training."""
    for module in model.modules():
        attribute = DROPPED.get(type(module).__name__)
        if attribute is not None:
            setattr(module, attribute, 0.0)
        if isinstance(getattr(module, "drop_rate", None), float):  # timm's, before its classifier
            module.drop_rate = 0.0


def _parts(name: str) -> tuple[str, str]:
    library, _, model = name.partition("/")
    if library not in LIBRARIES or not model:
        forms = " or ".join(f"{library}/NAME" for library in LIBRARIES)
        raise ModelError(f"expected {forms}, got {name!r}")
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
