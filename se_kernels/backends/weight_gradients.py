"""The gradients of the FCs on a GPU: small products over the batch, left to torch's own."""

import contextlib

import torch

from se_kernels.reference import outside_autocast


def weight_gradients(gradients, needs, de, da, h, z) -> None:
    """Fills dW1 = Σ_n da zᵀ, dW2 = Σ_n de hᵀ, db1 = Σ_n da, db2 = Σ_n de, where ``needs`` says so.

    ``gradients``: dw1 (R, C), dw2 (C, R), db1 (R,), db2 (C,); de, z (N, C), da, h (N, R).
    """
    dw1, dw2, db1, db2 = gradients
    need_dw1, need_dw2, need_db1, need_db2 = needs
    with outside_autocast(z.device.type), _without_tf32():
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


@contextlib.contextmanager
def _without_tf32():
    """A context in which float32 products are not rounded to 19 bits, whatever the user allows."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if before != "tf32":
        yield
        return
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before
