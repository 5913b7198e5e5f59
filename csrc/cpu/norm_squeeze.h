// squeeze of v, z (N,C), and its backward, dx = scale pre'(t) (g s + d) + slope (x - mean) +
// offset.
#pragma once

#include "norm_sums.h"

namespace se_kernels::SE_ISA::norm {

template <class Tag, class X, class Of>
SE_INLINE auto squeeze_term(Tag tag, const X* x, const Of& of) {
  return Terms<typename Tag::type, 1>{{activated<true>(tag, of.pre, of.normed(load(tag, x)))}};
}

// total += Σ pre(t) of a channel.
template <class A, class X>
void squeeze_row(const X* x, std::int64_t n, const NormAt<A>& of, double* total) {
  sum_row_terms<A, 1>(n, total,
                      [=](auto tag, std::int64_t i) { return squeeze_term(tag, x + i, of); });
}

// totals (C) += Σ pre(t) over some pixels.
template <class A, class X>
void squeeze_columns(Image<const X> x, Range pixels, std::int64_t C, const NormOf<A>& norm,
                     A* partial, double* totals) {
  sum_columns_terms<A, 1, 4>(pixels, C, partial, totals,
                             [=](auto tag, std::int64_t p, std::int64_t c) {
                               return squeeze_term(tag, x.pixel(p) + c, norm.at(tag, c));
                             });
}

template <class A, class X>
void squeeze(const Problem& p, const NormSqueeze& f, const NormScratch& scratch) {
  const NormOf<A> norm(f.norm);
  A* z = static_cast<A*>(f.z);
  sums<A>(
      p, scratch, 1,
      [&](std::int64_t n, std::int64_t c, double* totals) {
        squeeze_row<A>(image<X>(f.x, n).channel(c), p.pixels, norm.at(One<A>{}, c), totals);
      },
      [&](std::int64_t n, Range pixels, A* partial, double* totals) {
        squeeze_columns(image<X>(f.x, n), pixels, p.channels, norm, partial, totals);
      },
      [&](std::int64_t n, std::int64_t c, const double* totals, std::int64_t) {
        z[n * p.channels + c] = A(totals[0] / double(p.pixels));
      });
}

// dx of an element: scale pre'(t) (g s + d) + slope (x - mean) + offset.
template <bool Active, bool Sloped, class Tag, class X, class V, class Of>
SE_INLINE V dx_at(Tag tag, V g, const X* x, const Of& of, V s, V d, V slope, V offset) {
  V dv = g * s + d;
  if constexpr (Active || Sloped) {
    const V centred = load(tag, x) - of.mean;
    if constexpr (Active)
      dv = activated_backward<true>(tag, of.pre, centred * of.scale + of.bias, dv);
    dv *= of.scale;
    if constexpr (Sloped) dv += slope * centred + offset;
    return dv;
  } else {
    return dv * of.scale;
  }
}

template <class A, class X>
void squeeze_backward(const Problem& p, const NormSqueezeBackward& b, const NormScratch& scratch) {
  const NormOf<A> norm(b.norm);
  const std::int64_t C = p.channels, P = p.pixels;
  const A *slope = static_cast<const A*>(b.slope), *offset = static_cast<const A*>(b.offset);
  const auto run = [&](auto active, auto masked, auto sloped) {
    sweep(p, scratch.threads, true, [&](const Piece& piece, int) {
      const std::int64_t n = piece.image;
      const A *s = static_cast<const A*>(b.s) + n * C, *d = static_cast<const A*>(b.d) + n * C;
      const Image<const X> g = image<X>(b.g, n), x = image<X>(b.x, n);
      const Image<X> dx = image<X>(b.dx, n);
      for (std::int64_t row = piece.rows.begin; row < piece.rows.end; ++row) {
        if (p.layout == Layout::nchw) {
          const X *g_row = g.channel(row), *x_row = x.channel(row);
          const std::uint8_t* mask =
              masked.value ? b.mask + (n * C + row) * ((P + 7) / 8) : nullptr;
          const auto of = norm.at(One<A>{}, row);
          const A s_c = s[row], d_c = d[row], slope_c = sloped.value ? slope[row] : A(0),
                  offset_c = sloped.value ? offset[row] : A(0);
          map_row_aligned<A>(dx.channel(row), P, scratch.streaming, [=](auto tag, std::int64_t i) {
            using V = typename decltype(tag)::type;
            return dx_at<active.value, sloped.value>(
                tag, gradient_at<A, masked.value>(tag, g_row, mask, i), x_row + i, of, V{} + s_c,
                V{} + d_c, V{} + slope_c, V{} + offset_c);
          });
        } else {
          const X *g_row = g.pixel(row), *x_row = x.pixel(row);
          const std::uint8_t* mask =
              masked.value ? b.mask + (n * P + row) * ((C + 7) / 8) : nullptr;
          map_row_aligned<A>(dx.pixel(row), C, scratch.streaming, [=](auto tag, std::int64_t c) {
            using V = typename decltype(tag)::type;
            V slope_c{}, offset_c{};
            if constexpr (sloped.value)
              slope_c = load(tag, slope + c), offset_c = load(tag, offset + c);
            return dx_at<active.value, sloped.value>(
                tag, gradient_at<A, masked.value>(tag, g_row, mask, c), x_row + c, norm.at(tag, c),
                load(tag, s + c), load(tag, d + c), slope_c, offset_c);
          });
        }
      }
    });
  };
  with_flag(norm.pre != Pre::identity, [&](auto active) {
    with_flag(b.mask != nullptr, [&](auto masked) {
      with_flag(slope != nullptr, [&](auto sloped) { run(active, masked, sloped); });
    });
  });
}

}  // namespace se_kernels::SE_ISA::norm
