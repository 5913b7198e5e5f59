"""An inference with a batch norm, composed of a backend's sweeps."""

import torch

from se_kernels import reference, solve


def norm_inference(
    backend, u, bn_weight, bn_bias, mean, var, eps, w1, w2, b1, b2, residual,
    pre, act, act_slope, gate, post,
):  # fmt: skip
    """y (N, C, H, W); ``backend`` is the module with norm_moments, norm_squeeze and norm_scale."""
    dtype = reference.norm_compute_dtype(u, bn_weight, w1)
    with reference.outside_autocast(u.device.type):
        norm, _ = solve.norm_of(mean.to(dtype), var.to(dtype), bn_weight, bn_bias, eps)
        if pre == "identity":
            means, _ = backend.norm_moments(u, dtype == torch.float64)
            z = solve.affine(solve.centred(means, norm), norm)
        else:
            z = backend.norm_squeeze(u, norm, pre)
        _, s = solve.excite(z, w1, w2, b1, b2, act, act_slope, gate)
        return backend.norm_scale(u, norm, s, residual, pre, post, False)[0]
