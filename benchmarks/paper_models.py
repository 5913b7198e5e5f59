"""A network of ``se_kernels.models``: its SE blocks eager, fused in two ways, and left out."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from se_kernels.models import create
from se_kernels.models.se import EagerSqueezeExcite

from . import fusion_levels
from .inputs import MEMORY_FORMATS
from .models import drop_nothing
from .network import CLASSES, Built, Point, Settings
from .norms import calibrate, settle


@dataclass(frozen=True)
class PaperModel:
    """The subject of ``network --model`` for a name without a library's."""

    kind = "model"

    def build(self, point: Point, settings: Settings, images: Tensor) -> Built:
        """``unfused``, ``layer``, ``block`` and ``identity``: equal weights under equal names."""
        torch.manual_seed(settings.seed)
        unfused = self.placed(point, settings, "eager")
        settle(unfused, images, settings.seed)
        weights = unfused.state_dict()
        built = {"unfused": unfused}
        for name, se in (("layer", "layer"), ("block", "fused")):
            built[name] = self.placed(point, settings, se)
            built[name].load_state_dict(weights)
        identity = self.placed(point, settings, None)
        identity.load_state_dict({name: weights[name] for name in identity.state_dict()})
        calibrate(identity, images)  # its norms see what no gate has made smaller
        modules = se_modules(unfused)
        about = {"model": point.model, "libraries": {}, "se_modules": modules, "skipped": {}}
        built["identity"] = identity
        return Built(built, fusion_levels.JUDGES, ("unfused", list(modules)), about)

    def placed(self, point: Point, settings: Settings, se: str | None) -> nn.Module:
        network = create(point.model, CLASSES, se=se)
        drop_nothing(network)
        # torch's stub has no memory_format
        return network.to(device=settings.device, memory_format=MEMORY_FORMATS[point.layout])  # type: ignore[call-overload]

    def findings(self, seconds: Mapping[str, np.ndarray]) -> dict:
        return fusion_levels.findings(seconds)


def se_modules(network: nn.Module) -> dict[str, str]:
    """The SE blocks by name, with their class."""
    cls = EagerSqueezeExcite
    where = f"{cls.__module__}.{cls.__qualname__}"
    return {name: where for name, module in network.named_modules() if isinstance(module, cls)}
