"""The FCs' products that are left to torch's own: small, over the batch, and exact in float32."""

import contextlib

import torch

from se_kernels.reference import outside_autocast


@contextlib.contextmanager
def exact(device_type: str):
    """A context in which products are in the dtype of their numbers: autocast is off, and float32
    is not rounded to 19 bits or 8, whatever the user allows."""
    allowed = []
    for matmul in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
        if matmul.fp32_precision in ("tf32", "bf16"):
            allowed.append((matmul, matmul.fp32_precision))
            matmul.fp32_precision = "ieee"
    try:
        with outside_autocast(device_type):
            yield
    finally:
        for matmul, before in allowed:
            matmul.fp32_precision = before


def weight_gradients(gradients, needs, de, da, h, z) -> None:
    """Fills dW1 = Σ_n da zᵀ, dW2 = Σ_n de hᵀ, db1 = Σ_n da, db2 = Σ_n de, where ``needs`` says so.

    ``gradients``: dw1 (R, C), dw2 (C, R), db1 (R,), db2 (C,); de, z (N, C), da, h (N, R).
    """
    dw1, dw2, db1, db2 = gradients
    need_dw1, need_dw2, need_db1, need_db2 = needs
    with exact(z.device.type):
        if need_dw1:
            _product(da, z, dw1)
        if need_dw2:
            _product(de, h, dw2)
        if need_db1:
            db1.copy_(da.sum(0))
        if need_db2:
            db2.copy_(de.sum(0))


def _product(left, right, out) -> None:
    """out = leftᵀ right, rounded once to out's dtype."""
    matrix = out.view(out.shape[:2])
    if out.dtype == left.dtype:
        torch.mm(left.t(), right, out=matrix)
    else:
        matrix.copy_(left.t() @ right)
