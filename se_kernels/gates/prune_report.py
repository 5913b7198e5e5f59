"""PruneReport: what ``prune_by_gate`` did."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class PruneReport:
    """What ``prune_by_gate`` did; ``print(report)`` gives a summary.

    Attributes:
        model: the name of the model's class.
        images: how many the gates were looked at for.
        constant: "one" or "mean".
        tolerance: the largest distance of a block that may be removed.
        distances: name of every SE block → the root mean square, over images and channels, of
            s - 1, or of s - its mean over the images; the nearest first.
        mean_gates: name of every SE block → mean of s over the images (C,), which ranks channels.
        removed: names of the blocks that are constants now.
        parameters: of the model, (before, after), the numbers of constant gates among them.
        exact: the largest difference between the outputs of the pruned model and those of the
            original with the gates of the removed blocks held at the constant: the two are the same
            network, and differ by rounding at most.
        approximate: the largest difference between the outputs of the pruned model and those of the
            original as it was.
        largest: the largest number among the outputs of the original.
        changed: the number of images whose largest output is another now; None where the outputs
            are not (N, classes).

    Where no block was removed nothing was compared: the last four are 0.
    """

    model: str
    images: int
    constant: str
    tolerance: float
    distances: dict[str, float]
    mean_gates: dict[str, Tensor] = field(repr=False)
    removed: tuple[str, ...]
    parameters: tuple[int, int]
    exact: float
    approximate: float
    largest: float
    changed: int | None

    def __str__(self) -> str:
        before, after = self.parameters
        what = "1" if self.constant == "one" else "their means"
        count, saved = len(self.removed), before - after
        share = 100 * saved / before
        lines = [
            f"{self.model}: {count} of {len(self.distances)} SE blocks removed, "
            f"{saved:,} of {before:,} parameters saved ({share:.1f} %)",
            f"  distance of the gates from {what}, over {self.images} images "
            f"(removed up to {self.tolerance:g}):",
        ]
        width = max(map(len, self.distances), default=0)
        lines += [
            f"    {name:<{width}}  {distance:.4f}{'  removed' if name in self.removed else ''}"
            for name, distance in self.distances.items()
        ]
        if count:
            lines += [
                f"  exact: {self.exact:.2g} between it and the original with these gates held at "
                f"{what}",
                f"  approximate: {self.approximate:.2g} between it and the original, whose largest "
                f"output is {self.largest:.2g}",
            ]
            if self.changed is not None:
                lines.append(f"  the largest output is another for {self.changed} images")
        return "\n".join(lines)
