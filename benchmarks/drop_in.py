"""A model of timm or torchvision: as it is, fused, and with identity in place of its SE modules.

The forms of ``fusion_levels.py``.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

import se_kernels

from . import fusion_levels, models
from .environment import version_of
from .inputs import MEMORY_FORMATS
from .network import CLASSES, Built, Point, Settings
from .norms import calibrate, settle


@dataclass(frozen=True)
class DropIn:
    """The subject of ``network --model`` for a library's name; without ``fuse`` it only tells SE's
    share."""

    fuse: bool
    kind = "model"

    def build(self, point: Point, settings: Settings, images: Tensor) -> Built:
        """``unfused``, with ``fuse`` also ``layer`` and, where ``se_kernels.fuse`` knows the
        blocks, ``block``, and ``identity``: copies of one model.

        Raises:
            models.ModelError: ``se_kernels.fuse`` finds nothing to replace.
        """
        unfused = models.build(point.model, CLASSES, settings.seed)
        # torch's stub has no memory_format
        unfused.to(device=settings.device, memory_format=MEMORY_FORMATS[point.layout])  # type: ignore[call-overload]
        settle(unfused, images, settings.seed)
        built = {level: copy.deepcopy(unfused) for level in fusion_levels.FUSED}
        reports = {level: se_kernels.fuse(model, level) for level, model in built.items()}
        report = reports["block"]
        if not report.fused:
            reasons = "; ".join(f"{name}: {why}" for name, why in report.skipped.items())
            raise models.ModelError(
                f"se_kernels.fuse finds no SE module to replace ({reasons or 'it has none'})"
            )
        identity = copy.deepcopy(unfused)
        replace_by_identity(identity, report.fused)
        calibrate(identity, images)  # its norms see what no gate has made smaller
        if not self.fuse:
            built = {}
        elif not report.blocks:
            del built["block"]  # the same as "layer"
        built = {"unfused": unfused, **built, "identity": identity}
        about = {
            "model": point.model,
            "libraries": {name: version_of(name) for name in models.LIBRARIES},
            "se_modules": dict(report.fused),
            "skipped": dict(report.skipped),
            "blocks": dict(report.blocks),
            "apart": dict(report.apart),
        }
        return Built(built, fusion_levels.JUDGES, ("unfused", list(report.fused)), about)

    def findings(self, seconds: Mapping[str, np.ndarray]) -> dict:
        return fusion_levels.findings(seconds)


def replace_by_identity(model: nn.Module, names: Iterable[str]) -> None:
    """Put ``nn.Identity`` in the place of the modules so named, wherever else they are shared."""
    replaced = {id(model.get_submodule(name)) for name in names}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in replaced:
                setattr(parent, name, nn.Identity())
