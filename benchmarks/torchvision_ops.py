"""Lets torchvision, and so timm, import beside a torch that its binary was not made for.

torchvision's wheels from PyPI are made for the CUDA build of torch. Beside a CPU build their
operators do not load, and the import fails for want of two of them, which no classifier calls.
"""

import importlib

import torch

MISSING = ("nms", "qnms")  # named by torchvision's Python code when it is imported
_declared: list[torch.library.Library] = []  # declarations end with the object that made them


def import_torchvision() -> None:
    """Import torchvision, declaring (not defining) those operators if it cannot be without.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        RuntimeError: it cannot be imported for another reason.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if not any(f"torchvision::{name}" in str(error) for name in MISSING):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for name in MISSING:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
        importlib.import_module("torchvision")
