"""The paper's pair: ResNet-50 beside SE-ResNet-50, eager and fused; its ratios stand beside.

Fused are the SE blocks with the shortcut and the ReLU (``se_layer``), and with the norm before them
too (``se_block``).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from se_kernels.models import resnet50, se_resnet50
from se_kernels.models.se import EagerSqueezeExcite

from .inputs import MEMORY_FORMATS
from .network import CLASSES, COMPILED, Built, Point, Settings
from .norms import settle
from .timing import paired_ratio

PAPER = (  # section 4: what, ResNet-50 ms, SE-ResNet-50 ms
    ("training step, 256 images, 8 Titan X", 190.0, 209.0),
    ("inference on a CPU, 1 image", 164.0, 167.0),
)
FUSED = {"se_layer": "layer", "se_block": "block"}  # ``fused`` of ``se_kernels.models.SE``
RATIOS = (  # over, under
    ("se_eager", "resnet50"),
    ("se_layer", "resnet50"),
    ("se_block", "resnet50"),
    ("se_eager", "se_layer"),
    ("se_eager", "se_block"),
)
JUDGES = {"resnet50": "resnet50", "se_eager": "se_eager", **dict.fromkeys(FUSED, "se_eager")}


@dataclass(frozen=True)
class ResNetVsSE:
    """The subject of ``network`` without ``--model``."""

    stride_in_1x1: bool = True
    kind = "network"

    def build(self, point: Point, settings: Settings, images: Tensor) -> Built:
        models = {
            "resnet50": self.resnet(settings, images, point.layout),
            **self.se_resnets(settings, images, point.layout),
        }
        names = [n for n, m in models["se_eager"].named_modules() if type(m) is EagerSqueezeExcite]
        about = {"stride_in_1x1": self.stride_in_1x1}
        return Built(models, JUDGES, ("se_eager", names), about)

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
        models = {"se_eager": eager}
        for name, fused in FUSED.items():
            model = se_resnet50(fused=fused, backend=settings.backend, **self._options())
            models[name] = _placed(model, settings, layout)
            models[name].load_state_dict(eager.state_dict())
        return models

    def findings(self, seconds: Mapping[str, np.ndarray]) -> dict:
        return {
            "ratios": {  # ratios["se_block/resnet50"]: the time of the first over the second's
                f"{over}{form}/{under}{form}": paired_ratio(
                    seconds[over + form], seconds[under + form]
                )
                for form in ("", COMPILED)
                for over, under in RATIOS
                if {over + form, under + form} <= seconds.keys()
            },
            "paper": [
                {"what": what, "resnet50_ms": plain, "se_resnet50_ms": se, "ratio": se / plain}
                for what, plain, se in PAPER
            ],
        }

    def _options(self) -> dict:
        return dict(num_classes=CLASSES, stride_in_1x1=self.stride_in_1x1)


def _placed(model: nn.Module, settings: Settings, layout: str) -> nn.Module:
    # torch's stub has no memory_format
    return model.to(device=settings.device, memory_format=MEMORY_FORMATS[layout])  # type: ignore[call-overload]
