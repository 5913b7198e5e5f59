"""Makes torchvision, and so timm, importable beside a CPU build of torch.

torchvision's own extension does not load there, and its import then misses two operators that no
model needs. Importing this module, before torchvision, declares the two where the extension cannot
be loaded; conftest.py does so for every test.
"""

import importlib.util
from pathlib import Path

import torch

_library = torch.library.Library("torchvision", "FRAGMENT")  # its declarations end with it


def _extension_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        return True  # nothing will miss the operators
    for extension in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(extension))
        except OSError:
            continue
        return True
    return False


if not _extension_loads():
    for _operator in ("nms", "qnms"):
        _library.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
