"""FuseReport: what ``fuse`` did."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FuseReport:
    """``print(report)`` gives a summary.

    Example:
        >>> print(se_kernels.fuse(torch.nn.Linear(2, 2)))
        no SE module found in Linear

    Attributes:
        model: the name of the model's class.
        fused: name of each module that is fused now, as in ``named_modules``, → its class. A
            module reached by several names is listed under each. The model itself has the name "".
        skipped: name of each SE module that was left as it is → the reason.
        blocks: with ``level="block"``, name of each block whose SE module is fused with what is
            around it → its class.
        apart: name of each block of a known class that is not, though it has an SE module → the
            reason. The SE module in it may be fused.
    """

    model: str
    fused: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, str] = field(default_factory=dict)
    apart: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.fused and not self.skipped:
            return f"no SE module found in {self.model}"
        modules = "SE module" if len(self.fused) == 1 else "SE modules"
        lines = [f"{self.model}: {len(self.fused)} {modules} fused, {len(self.skipped)} skipped"]
        lines += [f"  {count} x {cls}" for cls, count in Counter(self.fused.values()).items()]
        counts = Counter(self.blocks.values()).items()
        lines += [f"  with what is around: {count} x {cls}" for cls, count in counts]
        lines += _reasons("skipped", self.skipped) + _reasons("not with what is around", self.apart)
        return "\n".join(lines)


def _reasons(what: str, reasons: dict[str, str]) -> list[str]:
    lines = []
    for reason in dict.fromkeys(reasons.values()):
        names = [name or "(the model)" for name, why in reasons.items() if why == reason]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"  {what} {', '.join(names[:3])}{more}: {reason}")
    return lines
