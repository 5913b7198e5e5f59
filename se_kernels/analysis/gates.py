"""Gates by class: the numbers behind Figs. 6 and 7."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from se_kernels.gates import Moments, record_gates


def gates_by_class(
    model: nn.Module,
    batches: Iterable[tuple[str, Tensor]],
    layers: Iterable[str] | None = None,
) -> dict[str, Moments]:
    """Class → means and deviations of s over its images, for every SE block and channel.

    The model runs without gradients, in the mode it is in: call ``eval`` first.

    Args:
        model, layers: as of ``record_gates``, whose errors it raises.
        batches: (class, images (n, C, H, W)), on the model's device, as ``ImageFolder.batches``
            gives them; a class may have several.

    Raises:
        ValueError: there is no batch.
    """
    found: dict[str, Moments] = {}
    with torch.inference_mode(), record_gates(model, layers) as gates:
        for name, images in batches:
            model(images)
            found.setdefault(name, Moments()).add(gates)
            gates.clear()
    if not found:
        raise ValueError("batches: expected at least one, got none")
    return found


class LayerStatistics(NamedTuple):
    """One SE block over all classes; every class counts the same."""

    layer: str
    channels: int
    mean: float  # of s
    between: float  # root mean square over channels of the deviation of the classes' means
    within: float  # root mean square over classes and channels of the deviation within a class
    from_one: float  # root mean square of s - 1


def layer_statistics(gates: Mapping[str, Moments]) -> list[LayerStatistics]:
    """What section 7.2 reads from Figs. 6 and 7, of ``gates_by_class``, in the network's order."""
    rows = []
    for layer in next(iter(gates.values())).names:
        means = torch.stack([moments.mean(layer) for moments in gates.values()])
        deviations = torch.stack([moments.deviation(layer) for moments in gates.values()])
        between = means.std(0, correction=0).square().mean().sqrt().item()
        within = deviations.square().mean().sqrt().item()
        from_one = (deviations.square() + (means - 1).square()).mean().sqrt().item()
        channels = means.shape[1]
        rows.append(
            LayerStatistics(layer, channels, means.mean().item(), between, within, from_one)
        )
    return rows
