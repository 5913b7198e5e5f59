"""A batch norm and the block, composed of a backend's sweeps and the solve in torch."""

import torch

from se_kernels import reference, solve


def norm_inference(
    backend, u, bn_weight, bn_bias, mean, var, eps, w1, w2, b1, b2, residual,
    pre, act, act_slope, gate, post,
):  # fmt: skip
    """y (N, C, H, W); ``backend`` is the module with norm_moments, norm_squeeze and norm_scale."""
    return norm_forward(
        backend, u, bn_weight, bn_bias, mean, var, None, w1, w2, b1, b2, residual,
        False, 0.0, eps, pre, act, act_slope, gate, post, False,
    )[0]  # fmt: skip


def norm_forward(
    backend, u, bn_weight, bn_bias, mean, var, means, w1, w2, b1, b2, residual,
    training, momentum, eps, pre, act, act_slope, gate, post, keep,
):  # fmt: skip
    """What ``ops.norm_forward`` returns."""
    dtype = reference.norm_compute_dtype(u, bn_weight, w1)
    moved = u.new_empty(0, dtype=torch.float64)
    with reference.outside_autocast(u.device.type):
        if training or (means is None and pre == "identity"):
            means, m2 = backend.norm_moments(u, dtype == torch.float64)
        if training:
            running = mean, var
            mean, m2 = solve.statistics(means, m2, u.shape[2] * u.shape[3])
            count = u.shape[0] * u.shape[2] * u.shape[3]
            if running[0] is not None:
                moved = torch.stack(solve.moved(*running, mean, m2, count, momentum))
            var = m2 / count
        norm = solve.norm_of(mean.to(dtype), var.to(dtype), bn_weight, bn_bias, eps)
        if pre == "identity":
            squeezed = solve.centred(means, norm)
            z = solve.affine(squeezed, norm)
        else:
            z = squeezed = backend.norm_squeeze(u, norm[:3], pre)
        a, s = solve.excite(z, w1, w2, b1, b2, act, act_slope, gate)
        y, mask = backend.norm_scale(u, norm[:3], s, residual, pre, post, keep)
        return y, mask, torch.cat((norm, squeezed, s)), a, moved


def norm_backward(
    backend, dy, u, mask, numbers, a, w1, w2, training, pre, act, act_slope, gate, needs
):
    """What ``ops.norm_backward`` returns."""
    need_du, write, need_d, *need_weights = needs
    images, pixels = u.shape[0], u.shape[2] * u.shape[3]
    rows, squeezed, s = numbers.split((4, images, images))
    norm, (_, scale, bias, rstd) = rows[:3], rows.unbind()
    with reference.outside_autocast(u.device.type):
        dr, sums = backend.norm_scale_backward(dy, u, mask, norm, pre, write)
        if pre == "identity":
            total, moment = sums.unbind()
            ds = torch.addcmul(scale * moment, bias, total)
            opened, opened_moment = pixels, pixels * squeezed
            z = solve.affine(squeezed, rows)
        else:
            ds, total, moment, opened, opened_moment = sums.unbind()
            z = squeezed
        dz, *weight_gradients = solve.excite_backward(
            ds, z, a, s, w1, w2, act, act_slope, gate, need_weights
        )
        d = dz / pixels if pixels else dz
        d_bias = torch.addcmul(d * opened, s, total).sum(0)
        d_weight = torch.addcmul(d * opened_moment, s, moment).sum(0) * rstd
        du = u.new_empty(0)
        if need_du:
            adds = (None, None)
            if training:
                adds = solve.through_statistics(rows, d_weight, d_bias, images * pixels)
            g, g_mask = (dr, None) if write else (dy, mask)
            du = backend.norm_squeeze_backward(g, u, g_mask, norm, s, d, pre, *adds)
    return d_weight, d_bias, du, dr, d if need_d else d.new_empty(0), *weight_gradients
