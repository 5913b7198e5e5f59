// scale of v, y = post(s v + residual), with the mask of post; and its backward, g = dy post'(y),
// dr = g, and the sums from which the other gradients follow.
#pragma once

#include "norm_sums.h"
#include "scale.h"

namespace se_kernels::SE_ISA::norm {

// y of some rows of an image, and its mask where there is one; s (C).
template <class A, class X>
void scale_rows(const Problem& p, const NormOf<A>& norm, Image<const X> x, Image<const X> residual,
                const Piece& piece, const A* s, Image<X> y, std::uint8_t* mask, bool streaming) {
  const bool rows = p.layout == Layout::nchw;
  const std::int64_t length = rows ? p.pixels : p.channels, bytes = (length + 7) / 8;
  const A floor = floor_of<A>(p.post);
  const auto run = [&](auto active, auto add, auto keep) {
    const auto value = [=](auto tag, const X* x_at, const X* residual_at, const auto& of,
                           auto s_at) __attribute__((always_inline)) {
      auto v = activated<active.value>(tag, of.pre, of.normed(load(tag, x_at))) * s_at;
      if constexpr (add.value) v += load(tag, residual_at);
      return v;
    };
    const auto write = [&](std::int64_t row, X* y_row, auto f) __attribute__((always_inline)) {
      std::uint8_t* bits = keep.value ? mask + (piece.image * rows_of(p) + row) * bytes : nullptr;
      write_row<A, keep.value>(y_row, bits, length, floor, streaming, f);
    };
    for (std::int64_t row = piece.rows.begin; row < piece.rows.end; ++row) {
      if (rows) {
        const X *x_row = x.channel(row), *residual_row = add.value ? residual.channel(row) : x_row;
        const auto of = norm.at(One<A>{}, row);
        const A s_c = s[row];
        write(row, y.channel(row), [=](auto tag, std::int64_t i) {
          return value(tag, x_row + i, residual_row + i, of, s_c);
        });
      } else {
        const X *x_row = x.pixel(row), *residual_row = add.value ? residual.pixel(row) : x_row;
        write(row, y.pixel(row), [=](auto tag, std::int64_t c) {
          return value(tag, x_row + c, residual_row + c, norm.at(tag, c), load(tag, s + c));
        });
      }
    }
  };
  with_flag(norm.pre != Pre::identity, [&](auto active) {
    with_flag(bool(residual), [&](auto add) {
      with_flag(mask != nullptr, [&](auto keep) { run(active, add, keep); });
    });
  });
}

template <class A, class X>
void scale(const Problem& p, const NormScale& f, const NormScratch& scratch) {
  const NormOf<A> norm(f.norm);
  sweep(p, scratch.threads, true, [&](const Piece& piece, int) {
    const std::int64_t n = piece.image;
    scale_rows(p, norm, image<X>(f.x, n), image<X>(f.residual, n), piece,
               static_cast<const A*>(f.s) + n * p.channels, image<X>(f.y, n), f.mask,
               scratch.streaming);
  });
}

// The sums that backward needs of an element; see NormScaleBackward.
template <bool Active, class Tag, class V, class Of>
SE_INLINE auto backward_terms(Tag tag, V g, V x, const Of& of) {
  const V centred = x - of.mean;
  if constexpr (!Active) {
    return Terms<V, 2>{{g, g * centred}};
  } else {
    const V t = centred * of.scale + of.bias, one = constant(tag, t, 1);
    const V v = activated<true>(tag, of.pre, t);
    const V through = activated_backward<true>(tag, of.pre, t, g);
    const V open = activated_backward<true>(tag, of.pre, t, one);
    return Terms<V, 5>{{g * v, through, through * centred, open, open * centred}};
  }
}

template <class A, class X>
void scale_backward(const Problem& p, const NormScaleBackward& b, const NormScratch& scratch) {
  const NormOf<A> norm(b.norm);
  const std::int64_t C = p.channels, P = p.pixels;
  A* to = static_cast<A*>(b.sums);
  const auto run = [&](auto active, auto masked, auto write) {
    constexpr int K = active.value ? 5 : 2;
    sums<A>(
        p, scratch, K,
        [&](std::int64_t n, std::int64_t c, double* totals) {
          const X *dy = image<X>(b.dy, n).channel(c), *x = image<X>(b.x, n).channel(c);
          X* dr = write.value ? image<X>(b.dr, n).channel(c) : nullptr;
          const std::uint8_t* mask = masked.value ? b.mask + (n * C + c) * ((P + 7) / 8) : nullptr;
          const auto of = norm.at(One<A>{}, c);
          sum_row_terms<A, K>(P, totals, [=](auto tag, std::int64_t i) {
            using V = typename decltype(tag)::type;
            const V g = gradient_at<A, masked.value>(tag, dy, mask, i);
            if constexpr (write.value) store(tag, dr + i, g);
            return backward_terms<active.value>(tag, g, load(tag, x + i), of);
          });
        },
        [&](std::int64_t n, Range pixels, A* partial, double* totals) {
          const Image<const X> dy = image<X>(b.dy, n), x = image<X>(b.x, n);
          const Image<X> dr = image<X>(b.dr, n);
          const std::uint8_t* mask = b.mask;
          const std::int64_t bytes = (C + 7) / 8;
          sum_columns_terms<A, K, active.value ? 2 : 4>(
              pixels, C, partial, totals, [=](auto tag, std::int64_t at, std::int64_t c) {
                using V = typename decltype(tag)::type;
                const std::uint8_t* bits = masked.value ? mask + (n * P + at) * bytes : nullptr;
                const V g = gradient_at<A, masked.value>(tag, dy.pixel(at), bits, c);
                if constexpr (write.value) store(tag, dr.pixel(at) + c, g);
                return backward_terms<active.value>(tag, g, load(tag, x.pixel(at) + c),
                                                    norm.at(tag, c));
              });
        },
        [&](std::int64_t n, std::int64_t c, const double* totals, std::int64_t stride) {
          for (int k = 0; k < K; ++k) to[(k * p.images + n) * C + c] = A(totals[k * stride]);
        });
  };
  with_flag(norm.pre != Pre::identity, [&](auto active) {
    with_flag(b.mask != nullptr, [&](auto masked) {
      with_flag(b.dr.data != nullptr, [&](auto write) { run(active, masked, write); });
    });
  });
}

}  // namespace se_kernels::SE_ISA::norm
