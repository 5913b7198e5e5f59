"""A network of ``se_kernels.models``: its SE blocks eager, fused, and left out."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from se_kernels.models import create
from se_kernels.models.se import EagerSqueezeExcite

from . import forms
from .inputs import MEMORY_FORMATS
from .models import drop_nothing
from .network import CLASSES, Built, Point, Settings
from .norms import calibrate, settle


@dataclass(frozen=True)
class Own:
    """The subject of ``network --model`` for a name without a library's."""

    kind = "model"

    def build(self, point: Point, settings: Settings, images: Tensor) -> Built:
        """``unfused``, ``fused`` and ``identity``: equal weights under equal names."""
        torch.manual_seed(settings.seed)
        unfused = self.placed(point, settings, "eager")
        settle(unfused, images, settings.seed)
        weights = unfused.state_dict()
        fused = self.placed(point, settings, "fused")
        fused.load_state_dict(weights)
        identity = self.placed(point, settings, None)
        identity.load_state_dict({name: weights[name] for name in identity.state_dict()})
        calibrate(identity, images)  # its norms see what no gate has made smaller
        about = {
            "model": point.model,
            "libraries": {},
            "se_modules": se_modules(unfused),
            "skipped": {},
        }
        built = {"unfused": unfused, "fused": fused, "identity": identity}
        return Built(built, forms.JUDGES, about)

    def placed(self, point: Point, settings: Settings, se: str | None) -> nn.Module:
        network = create(point.model, CLASSES, se=se)
        drop_nothing(network)
        return network.to(device=settings.device, memory_format=MEMORY_FORMATS[point.layout])

    def findings(self, seconds: Mapping[str, np.ndarray]) -> dict:
        return forms.findings(seconds)


def se_modules(network: nn.Module) -> dict[str, str]:
    """The SE blocks by name, with their class."""
    cls = EagerSqueezeExcite
    where = f"{cls.__module__}.{cls.__qualname__}"
    return {name: where for name, module in network.named_modules() if isinstance(module, cls)}
