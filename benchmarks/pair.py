"""The paper's pair: ResNet-50 beside SE-ResNet-50, eager and fused; its ratios stand beside."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from se_kernels.models import resnet50, se_resnet50

from .inputs import MEMORY_FORMATS
from .network import CLASSES, Built, Point, Settings
from .norms import settle
from .timing import paired_ratio

PAPER = (  # section 4: what, ResNet-50 ms, SE-ResNet-50 ms
    ("training step, 256 images, 8 Titan X", 190.0, 209.0),
    ("inference on a CPU, 1 image", 164.0, 167.0),
)
RATIOS = (  # over, under
    ("se_eager", "resnet50"),
    ("se_fused", "resnet50"),
    ("se_eager", "se_fused"),
    ("se_eager_compiled", "resnet50_compiled"),
    ("se_fused_compiled", "resnet50_compiled"),
    ("se_eager_compiled", "se_fused_compiled"),
)
JUDGES = {"resnet50": "resnet50", "se_eager": "se_eager", "se_fused": "se_eager"}


@dataclass(frozen=True)
class Pair:
    """The subject of ``network`` without ``--model``."""

    stride_in_1x1: bool = True
    kind = "network"

    def build(self, point: Point, settings: Settings, images: Tensor) -> Built:
        models = {
            "resnet50": self.resnet(settings, images, point.layout),
            **self.se_resnets(settings, images, point.layout),
        }
        return Built(models, JUDGES, {"stride_in_1x1": self.stride_in_1x1})

    def resnet(self, settings: Settings, images: Tensor, layout: str) -> nn.Module:
        """ResNet-50, float32, settled."""
        torch.manual_seed(settings.seed)
        model = _placed(resnet50(**self._options()), settings, layout)
        settle(model, images, settings.seed)
        return model

    def se_resnets(self, settings: Settings, images: Tensor, layout: str) -> dict[str, nn.Module]:
        """SE-ResNet-50, eager and fused, with one state dict; float32, settled."""
        torch.manual_seed(settings.seed)
        eager = _placed(se_resnet50(fused=False, **self._options()), settings, layout)
        settle(eager, images, settings.seed)
        fused = se_resnet50(fused=True, backend=settings.backend, **self._options())
        fused = _placed(fused, settings, layout)
        fused.load_state_dict(eager.state_dict())
        return {"se_eager": eager, "se_fused": fused}

    def findings(self, seconds: Mapping[str, np.ndarray]) -> dict:
        return {
            "ratios": {  # ratios["se_fused/resnet50"]: the time of the first over the second's
                f"{over}/{under}": paired_ratio(seconds[over], seconds[under])
                for over, under in RATIOS
                if over in seconds
            },
            "paper": [
                {"what": what, "resnet50_ms": plain, "se_resnet50_ms": se, "ratio": se / plain}
                for what, plain, se in PAPER
            ],
        }

    def _options(self) -> dict:
        return dict(num_classes=CLASSES, stride_in_1x1=self.stride_in_1x1)


def _placed(model: nn.Module, settings: Settings, layout: str) -> nn.Module:
    return model.to(device=settings.device, memory_format=MEMORY_FORMATS[layout])
