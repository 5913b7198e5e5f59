"""What the block accepts. One wording: the argument, what was expected, what came."""

import math
import numbers
from typing import NoReturn

import torch
from torch import Tensor

from se_kernels.core.variants import ACTS, GATES, POSTS, PRES, SQUEEZES, Variant

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_DTYPE_NAMES = "float32, float64, bfloat16 or float16"


def check_arguments(
    x: Tensor, w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None, squeeze: str, act: str,
    act_slope: float, gate: str, residual: Tensor | None, post: str, images: str = "x",
) -> None:  # fmt: skip
    """Raises TypeError or ValueError for the first argument that the block cannot take.

    Shapes, dtypes and devices only: no element is read. ``images`` is what the caller names x.
    """
    if act not in ACTS:
        _raise_unknown("act", act, ACTS)
    if gate not in GATES:
        _raise_unknown("gate", gate, GATES)
    if isinstance(act_slope, bool) or not isinstance(act_slope, (int, float)):
        raise TypeError(f"act_slope: expected a number, got {act_slope!r}")
    check_squeeze(x, squeeze, images)
    channels, on = x.shape[1], (x.device, images)
    reduced = _check_matrix("w1", w1, None, channels, on)
    _check_matrix("w2", w2, channels, reduced, on)
    if w2.dtype != w1.dtype:
        _raise_dtype("w2", w2, "w1", w1)
    if b1 is not None:
        _check_bias("b1", b1, reduced, "R", w1, on)
    if b2 is not None:
        _check_bias("b2", b2, channels, "C", w1, on)
    _check_tail(x, residual, post, images)


def check_batch_norm(
    u: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, training: bool, momentum: float, eps: float, pre: str, shared: bool,
) -> None:  # fmt: skip
    """The same for the batch norm before the block; ``shared``: with other processes."""
    _check_images(u, "u")
    if pre not in PRES:
        _raise_unknown("pre", pre, PRES)
    if not isinstance(training, bool):
        raise TypeError(f"training: expected a bool, got {training!r}")
    for argument, value in (("momentum", momentum), ("eps", eps)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{argument}: expected a number, got {value!r}")
    if training and not eps > 0:
        raise ValueError(f"eps: expected a number above 0 where training=True, got {eps!r}")
    images, channels, height, width = u.shape
    for argument, t in (
        ("bn_weight", bn_weight),
        ("bn_bias", bn_bias),
        ("running_mean", running_mean),
        ("running_var", running_var),
    ):
        if t is not None:
            _check_tensor(argument, t)
            if t.dim() != 1 or t.shape[0] != channels:
                raise ValueError(
                    f"{argument}: expected shape (C,) = ({channels},), got {tuple(t.shape)}"
                )
            _check_device(argument, t, (u.device, "u"))
            if training and argument.startswith("running"):
                _check_written(argument, t)
    if (running_mean is None) != (running_var is None):
        missing = "running_mean" if running_mean is None else "running_var"
        raise ValueError(f"{missing}: expected both running statistics or neither, got None")
    if not training and running_mean is None:
        raise ValueError("running_mean: expected a tensor where training=False, got None")
    if training and not shared and images * height * width == 1:
        raise ValueError(  # torch.nn.BatchNorm2d's words
            f"Expected more than 1 value per channel when training, got input size {u.shape}"
        )


def check_count(argument: str, value: object) -> None:
    """An integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < 1:
        raise ValueError(f"{argument}: expected an integer of at least 1, got {value!r}")


def check_ratio(argument: str, value: object) -> None:
    """A number above 0."""
    if not isinstance(value, numbers.Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"{argument}: expected a number above 0, got {value!r}")


def check_tensor_type(argument: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument}: expected a torch.Tensor, got {type(value).__name__}")


def check_excitation(
    x: Tensor, excitation: object, w1: Tensor | None, w2: Tensor | None, b1: Tensor | None,
    b2: Tensor | None, squeeze: str, act: str, act_slope: float, gate: str, residual: Tensor | None,
    post: str,
) -> None:  # fmt: skip
    """The same for a block whose excitation is a callable: the FCs and their names are its own."""
    if not callable(excitation):
        raise TypeError(f"excitation: expected a callable, got {excitation!r}")
    for argument, t in (("w1", w1), ("w2", w2), ("b1", b1), ("b2", b2)):
        if t is not None:
            raise ValueError(
                f"{argument}: expected None beside an excitation, got {type(t).__name__}"
            )
    plain = Variant()
    given: tuple[tuple[str, object], ...] = (("act", act), ("act_slope", act_slope), ("gate", gate))
    for argument, value in given:
        expected = getattr(plain, argument)
        if value != expected:
            raise ValueError(
                f"{argument}: expected the default, {expected!r}, beside an excitation, "
                f"got {value!r}"
            )
    check_squeeze(x, squeeze)
    _check_tail(x, residual, post)


def check_squeeze(x: Tensor, squeeze: str, images: str = "x") -> None:
    """The same for the squeeze on its own."""
    if squeeze not in SQUEEZES:
        _raise_unknown("squeeze", squeeze, SQUEEZES)
    _check_images(x, images)
    shape = x.shape
    if squeeze != "avg" and (shape[2] == 0 or shape[3] == 0):
        raise ValueError(
            f"{images}: expected H and W of at least 1 for squeeze={squeeze!r}, got {tuple(shape)}"
        )


def check_scale(x: Tensor, s: Tensor, residual: Tensor | None, post: str) -> None:
    """The same for the scale on its own."""
    _check_images(x)
    check_gates("s", s, x)
    _check_tail(x, residual, post)


def check_gates(argument: str, s: Tensor, x: Tensor) -> None:
    """The same for one number s for each image and channel of x."""
    _check_tensor(argument, s)
    images, channels = x.shape[:2]
    if s.shape != (images, channels) and s.shape != (images, channels, 1, 1):
        raise ValueError(
            f"{argument}: expected shape (N, C) or (N, C, 1, 1) = ({images}, {channels}[, 1, 1]), "
            f"got {tuple(s.shape)}"
        )
    _check_device(argument, s, (x.device, "x"))


def _check_images(x: Tensor, argument: str = "x") -> None:
    _check_tensor(argument, x)
    if x.dim() != 4:
        raise ValueError(
            f"{argument}: expected a tensor of shape (N, C, H, W), got {tuple(x.shape)}"
        )


def _check_tail(x: Tensor, residual: Tensor | None, post: str, images: str = "x") -> None:
    if post not in POSTS:
        _raise_unknown("post", post, POSTS)
    if residual is not None:
        _check_tensor("residual", residual)
        if residual.shape != x.shape:
            raise ValueError(
                f"residual: expected the shape of {images}, {tuple(x.shape)}, "
                f"got {tuple(residual.shape)}"
            )
        if residual.dtype != x.dtype:
            _raise_dtype("residual", residual, images, x)
        _check_device("residual", residual, (x.device, images))


def _check_written(argument: str, value: Tensor) -> None:
    """A tensor (C,) that the call may write: torch refuses others once all is computed."""
    if value.shape[0] > 1 and value.stride(0) == 0:
        raise ValueError(
            f"{argument}: expected {value.shape[0]} elements, got one expanded to them"
        )
    if value.requires_grad and value.is_leaf and torch.is_grad_enabled():
        raise ValueError(
            f"{argument}: expected a tensor to be updated in place, got one with a gradient"
        )


def _check_tensor(argument: str, value: Tensor) -> None:
    check_tensor_type(argument, value)
    if value.dtype not in DTYPES:
        raise TypeError(f"{argument}: expected a dtype of {_DTYPE_NAMES}, got {value.dtype}")
    if value.layout is not torch.strided:
        raise TypeError(f"{argument}: expected a strided tensor, got layout {value.layout}")
    if value.is_nested:
        raise TypeError(f"{argument}: expected a strided tensor, got a nested one")


def _check_matrix(
    argument: str, w: Tensor, rows: int | None, columns: int, on: tuple[torch.device, str]
) -> int:
    """The number of rows of w (rows, columns) or (rows, columns, 1, 1); any number for None."""
    _check_tensor(argument, w)
    shape = w.shape
    if (
        len(shape) not in (2, 4)
        or shape[1] != columns
        or (rows is not None and shape[0] != rows)
        or (len(shape) == 4 and (shape[2] != 1 or shape[3] != 1))
    ):
        letters = "R, C" if rows is None else "C, R"
        sizes = f"R, {columns}" if rows is None else f"{rows}, {columns}"
        raise ValueError(
            f"{argument}: expected shape ({letters}) or ({letters}, 1, 1) = ({sizes}[, 1, 1]), "
            f"got {tuple(shape)}"
        )
    _check_device(argument, w, on)
    return shape[0]


def _check_bias(
    argument: str, b: Tensor, size: int, letter: str, w1: Tensor, on: tuple[torch.device, str]
) -> None:
    _check_tensor(argument, b)
    if b.dim() != 1 or b.shape[0] != size:
        raise ValueError(
            f"{argument}: expected shape ({letter},) = ({size},), got {tuple(b.shape)}"
        )
    if b.dtype != w1.dtype:
        _raise_dtype(argument, b, "w1", w1)
    _check_device(argument, b, on)


def _check_device(argument: str, value: Tensor, on: tuple[torch.device, str]) -> None:
    device, images = on
    if value.device != device:
        raise ValueError(
            f"{argument}: expected the device of {images}, {device}, got {value.device}"
        )


def _raise_dtype(argument: str, value: Tensor, other_name: str, other: Tensor) -> NoReturn:
    raise TypeError(
        f"{argument}: expected the dtype of {other_name}, {other.dtype}, got {value.dtype}"
    )


def _raise_unknown(argument: str, value: object, names: tuple[str, ...]) -> NoReturn:
    raise ValueError(f"{argument}: expected one of {', '.join(names)}; got {value!r}")
