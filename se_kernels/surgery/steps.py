"""What a module computes, said with the names of its own parts."""

from dataclasses import dataclass

from se_kernels.core.checks import check_count
from se_kernels.core.variants import SQUEEZES

LAYOUTS = ("nchw", "nhwc")


@dataclass(frozen=True)
class ExcitationSteps:
    """What the adapter of a family says of one module (``register_family``).

    Args:
        excitation: the steps from z to s, applied in order. Each is the name of a child (dotted
            for a nested one, "attention.0") or of a method of the module; a name that is neither
            stands for the function of that name: "relu", "silu", "gelu", "gelu_tanh", "hardswish",
            "sigmoid", "hardsigmoid", "tanh".
        squeeze: "avg", "max" or "avgmax": how z is pooled from x.
        pool: the name of the child that does the pooling, where one does.
        layout: of x, "nchw" (N, C, H, W) or "nhwc" (N, H, W, C).
        channels: C, to be given where the first step is no Conv2d or Linear.

    Where the steps are a 1×1 Conv2d or Linear, an activation, another Conv2d or Linear and a gate,
    the whole block is fused. Any other steps run as they are between the fused squeeze and the
    fused scale. The first step gets z as (N, C) if it is a Linear, else as (N, C, 1, 1); the last
    returns s as (N, C) or (N, C, 1, 1).

    Example:
        >>> se_kernels.ExcitationSteps(("fc1", "relu", "fc2", "sigmoid"), squeeze="max").squeeze
        'max'

    Raises:
        TypeError: a field of another type.
        ValueError: an unknown squeeze or layout, no step, or channels below 1.
    """

    excitation: tuple[str, ...]
    squeeze: str = "avg"
    pool: str | None = None
    layout: str = "nchw"
    channels: int | None = None

    def __post_init__(self) -> None:
        steps = self.excitation
        if not isinstance(steps, (tuple, list)) or not all(isinstance(s, str) for s in steps):
            raise TypeError(f"excitation: expected a tuple of names, got {steps!r}")
        if not steps:
            raise ValueError("excitation: expected at least one step, got none")
        if self.squeeze not in SQUEEZES:
            raise ValueError(
                f"squeeze: expected one of {', '.join(SQUEEZES)}; got {self.squeeze!r}"
            )
        if self.pool is not None and not isinstance(self.pool, str):
            raise TypeError(f"pool: expected the name of a child or None, got {self.pool!r}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}; got {self.layout!r}")
        if self.channels is not None:
            check_count("channels", self.channels)
        object.__setattr__(self, "excitation", tuple(steps))


@dataclass(frozen=True)
class BlockSpec:
    """How a block computes its output, said with the names of its children (dotted: nested ones).

    u = ``before`` of x, v = ``pre`` of ``norm`` of u, y = ``after`` of the SE module's s * v; then,
    where ``skip``, ``drop`` of y plus ``shortcut`` of x; then ``post``. A child that is None, or
    that the block does not have, or "", does nothing.

    A layer is a block with nothing around it: it has its ``excitation``, and no norm.
    """

    before: tuple[str, ...] = ()
    norm: str = ""
    se: str = ""
    pre: str = ""  # a norm of timm's that holds its own needs none here
    idle: tuple[str, ...] = ()  # between norm and SE module: must do nothing
    after: tuple[str, ...] = ()
    skip: str | bool = False  # or the name of an attribute that tells
    drop: str = ""  # stochastic depth
    shortcut: str = ""  # x itself
    in_place: bool = False  # the addition: it keeps the dtype of y
    post: str = ""
    excitation: ExcitationSteps | None = None
