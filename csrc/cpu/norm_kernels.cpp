// The sweeps with a batch norm of one instruction set, SE_ISA, and its inference in one call.
#include "groups.h"
#include "kernels.h"
#include "norm.h"
#include "pieces.h"
#include "types.h"

namespace se_kernels::SE_ISA {
namespace {

// f(Flag<true>) or f(Flag<false>).
template <class F>
void with_flag(bool value, F f) {
  value ? f(Flag<true>{}) : f(Flag<false>{});
}

// What one thread has to itself.
template <class A>
struct Room {
  double *totals, *slots;  // (K,C), (2,K,C)
  A *partial, *shift;      // (K,C), (C)

  Room(const NormScratch& scratch, int thread, std::int64_t C) {
    const std::int64_t k = scratch.sums;
    totals = static_cast<double*>(scratch.totals) + thread * k * C;
    slots = static_cast<double*>(scratch.slots) + thread * 2 * k * C;
    partial = static_cast<A*>(scratch.partial) + thread * k * C;
    shift = static_cast<A*>(scratch.shift) + thread * C;
  }
  // Where a piece's sums (K,C) are put.
  double* of(const Piece& piece, std::int64_t sums, std::int64_t C) const {
    return piece.whole ? totals : slots + piece.slot * sums * C;
  }
};

// --- moments
// --------------------------------------------------------------------------------------

constexpr std::int64_t kShifted = 16;  // numbers whose mean shifts all of a channel

struct Moments {
  double count, mean, m2;

  // From Σ (x - shift) and Σ (x - shift)².
  static Moments shifted(double count, double shift, double sum, double squares) {
    const double m2 = squares - sum * (sum / count);
    return {count, shift + sum / count, m2 < 0 ? 0 : m2};
  }
  void merge(const Moments& other) {
    const double all = count + other.count, gap = other.mean - mean;
    m2 += other.m2 + gap * gap * (count * other.count / all);
    mean += gap * (other.count / all);
    count = all;
  }
};

template <class A>
A usable_shift(A mean) {
  return mean - mean == 0 ? mean : A(0);  // a sum that is not finite stays what it is
}

template <class A>
SE_INLINE auto shifted_terms(A x, A shift) {
  const A d = x - shift;
  return Terms<A, 2>{{d, d * d}};
}

template <class A, class X>
Moments moments_of_row(const X* x, std::int64_t n) {
  const std::int64_t first = n < kShifted ? n : kShifted;
  A shift = 0;
  for (std::int64_t i = 0; i < first; ++i) shift += load(One<A>{}, x + i);
  shift = usable_shift(shift / A(first));
  double totals[2] = {};
  sum_row_terms<A, 2>(n, totals, [=](auto tag, std::int64_t i) {
    using V = typename decltype(tag)::type;
    return shifted_terms<V>(load(tag, x + i), V{} + shift);
  });
  return Moments::shifted(double(n), double(shift), totals[0], totals[1]);
}

// mean and m2 (C) of some pixels, into `to` (2,C).
template <class A, class X>
void moments_of_columns(Image<const X> x, Range pixels, std::int64_t C, const Room<A>& room,
                        double* to) {
  const std::int64_t first = pixels.size() < kShifted ? pixels.size() : kShifted;
  for (std::int64_t c = 0; c < C; ++c) room.shift[c] = 0;
  for (std::int64_t p = pixels.begin; p < pixels.begin + first; ++p)
    for (std::int64_t c = 0; c < C; ++c) room.shift[c] += load(One<A>{}, x.pixel(p) + c);
  for (std::int64_t c = 0; c < C; ++c) room.shift[c] = usable_shift(room.shift[c] / A(first));
  for (std::int64_t i = 0; i < 2 * C; ++i) to[i] = 0;
  const A* shift = room.shift;
  sum_columns_terms<A, 2, 4>(
      pixels, C, room.partial, to, [=](auto tag, std::int64_t p, std::int64_t c) {
        return shifted_terms(load(tag, x.pixel(p) + c), load(tag, shift + c));
      });
  for (std::int64_t c = 0; c < C; ++c) {
    const Moments m =
        Moments::shifted(double(pixels.size()), double(room.shift[c]), to[c], to[C + c]);
    to[c] = m.mean, to[C + c] = m.m2;
  }
}

template <class A, class X>
void moments(const Problem& p, const NormMoments& f, const NormScratch& scratch) {
  const std::int64_t C = p.channels;
  double *mean = static_cast<double*>(f.mean), *m2 = static_cast<double*>(f.m2);
  const auto put = [&](std::int64_t n, std::int64_t c, double mean_c, double m2_c) {
    mean[n * C + c] = mean_c, m2[n * C + c] = m2_c;
  };
  if (p.layout == Layout::nchw)
    return sweep(p, scratch.threads, false, [&](const Piece& piece, int) {
      const Image<const X> x = image<X>(f.x, piece.image);
      for (std::int64_t c = piece.rows.begin; c < piece.rows.end; ++c) {
        const Moments m = moments_of_row<A>(x.channel(c), p.pixels);
        put(piece.image, c, m.mean, m.m2);
      }
    });
  sweep_and_join(
      p, scratch.threads,
      [&](const Piece& piece, int thread) {
        const Room<A> room(scratch, thread, C);
        double* to = room.of(piece, 2, C);
        moments_of_columns(image<X>(f.x, piece.image), piece.rows, C, room, to);
        if (piece.whole)
          for (std::int64_t c = 0; c < C; ++c) put(piece.image, c, to[c], to[C + c]);
      },
      [&](std::int64_t n, auto for_parts) {
        for (std::int64_t c = 0; c < C; ++c) {
          Moments all{0, 0, 0};
          for_parts([&](const Piece& piece, int thread) {
            const double* from = Room<A>(scratch, thread, C).of(piece, 2, C);
            const Moments m{double(piece.rows.size()), from[c], from[C + c]};
            all.count == 0 ? void(all = m) : all.merge(m);
          });
          put(n, c, all.mean, all.m2);
        }
      });
}

// --- sums of K terms a channel, over the pixels
// -----------------------------------------------------

// row(image, c, totals) adds to K totals of channel c of nchw; columns(image, pixels, partial,
// totals) to K totals of each channel of nhwc; put(n, c, totals, stride) takes channel c's.
template <class A, int K, class Row, class Columns, class Put>
void sums(const Problem& p, const NormScratch& scratch, Row row, Columns columns, Put put) {
  const std::int64_t C = p.channels;
  if (p.layout == Layout::nchw)
    return sweep(p, scratch.threads, false, [&](const Piece& piece, int) {
      for (std::int64_t c = piece.rows.begin; c < piece.rows.end; ++c) {
        double totals[K] = {};
        row(piece.image, c, totals);
        put(piece.image, c, totals, 1);
      }
    });
  sweep_and_join(
      p, scratch.threads,
      [&](const Piece& piece, int thread) {
        const Room<A> room(scratch, thread, C);
        double* to = room.of(piece, K, C);
        for (std::int64_t i = 0; i < K * C; ++i) to[i] = 0;
        columns(piece.image, piece.rows, room.partial, to);
        if (piece.whole)
          for (std::int64_t c = 0; c < C; ++c) put(piece.image, c, to + c, C);
      },
      [&](std::int64_t n, auto for_parts) {
        for (std::int64_t c = 0; c < C; ++c) {
          double totals[K] = {};
          for_parts([&](const Piece& piece, int thread) {
            const double* from = Room<A>(scratch, thread, C).of(piece, K, C);
            for (int k = 0; k < K; ++k) totals[k] += from[k * C + c];
          });
          put(n, c, totals, 1);
        }
      });
}

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
  sums<A, 1>(
      p, scratch,
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

// --- scale
// ------------------------------------------------------------------------------------------

// y of some rows of an image, and its mask where there is one; s (C).
template <class A, class X>
void scale_rows(const Problem& p, const NormOf<A>& norm, Image<const X> x, Image<const X> residual,
                const Piece& piece, const A* s, Image<X> y, std::uint8_t* mask, bool streaming) {
  const bool rows = p.layout == Layout::nchw;
  const std::int64_t length = rows ? p.pixels : p.channels, bytes = (length + 7) / 8;
  const auto run = [&](auto active, auto add, auto relu_after, auto keep) {
    const auto value = [=](auto tag, const X* x_at, const X* residual_at, const auto& of,
                           auto s_at) __attribute__((always_inline)) {
      auto v = activated<active.value>(tag, of.pre, of.normed(load(tag, x_at))) * s_at;
      if constexpr (add.value) v += load(tag, residual_at);
      return v;
    };
    const auto write = [&](std::int64_t row, X* y_row, auto f) __attribute__((always_inline)) {
      if constexpr (keep.value)
        map_row_masked<A>(y_row, mask + (piece.image * rows_of(p) + row) * bytes, length, streaming,
                          f);
      else
        map_row<A>(y_row, length, streaming, [=](auto tag, std::int64_t i) {
          const auto v = f(tag, i);
          if constexpr (relu_after.value)
            return relu(v);
          else
            return v;
        });
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
      if (p.post == Post::none)
        run(active, add, Flag<false>{}, Flag<false>{});
      else
        with_flag(mask != nullptr, [&](auto keep) { run(active, add, Flag<true>{}, keep); });
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

template <class A, class X>
void mask(const Problem& p, const NormMask& f, const NormScratch& scratch) {
  const std::int64_t length = p.layout == Layout::nchw ? p.pixels : p.channels,
                     bytes = (length + 7) / 8;
  sweep(p, scratch.threads, false, [&](const Piece& piece, int) {
    const Image<const X> y = image<X>(f.y, piece.image);
    for (std::int64_t row = piece.rows.begin; row < piece.rows.end; ++row) {
      const X* y_row = p.layout == Layout::nchw ? y.channel(row) : y.pixel(row);
      mask_row<A>(
          f.mask + (piece.image * rows_of(p) + row) * bytes, length,
          [=](auto tag, std::int64_t i) { return load(tag, y_row + i); },
          [](auto, std::int64_t, auto) {});
    }
  });
}

// --- scale, backward
// ----------------------------------------------------------------------------------

template <class A, bool Masked, class Tag, class X>
SE_INLINE auto gradient_at(Tag tag, const X* dy, const std::uint8_t* mask, std::int64_t i) {
  const auto g = load(tag, dy + i);
  if constexpr (Masked)
    return where_open(tag, mask, i, g);
  else
    return g;
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
    sums<A, K>(
        p, scratch,
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
                const V g =
                    gradient_at<A, masked.value>(tag, dy.pixel(at), mask + (n * P + at) * bytes, c);
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

// --- squeeze, backward
// --------------------------------------------------------------------------------

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
          const std::uint8_t* mask = b.mask + (masked.value ? (n * C + row) * ((P + 7) / 8) : 0);
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
          const std::uint8_t* mask = b.mask + (masked.value ? (n * P + row) * ((C + 7) / 8) : 0);
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

// --- inference: the whole block, a group of images at a time
// --------------------------------------------

template <class A, class X>
void forward_group(const Problem& p, const NormForward& f, const NormOf<A>& norm, const Plan& plan,
                   const Scratch& scratch, const Share& share) {
  A *z = static_cast<A*>(scratch.by_channel[0]), *s = static_cast<A*>(scratch.by_channel[1]),
    *a = static_cast<A*>(scratch.by_reduced[0]), *h = static_cast<A*>(scratch.by_reduced[1]);
  const std::int64_t first = share.images.begin, C = p.channels, R = p.reduced;
  const bool rows = p.layout == Layout::nchw;

  if (norm.pre == Pre::identity) {
    squeeze_group<A, X>(p, plan, scratch, share, f.x, z);
    for (std::int64_t n = first; n < share.images.end; ++n)
      for (std::int64_t c = share.channels.begin; c < share.channels.end; ++c)
        z[n * C + c] = norm.at(One<A>{}, c).normed(z[n * C + c]);
  } else {
    for (std::int64_t n = first; n < share.images.end; ++n) {
      const Image<const X> x = image<X>(f.x, n);
      if (rows) {
        for (std::int64_t c = share.channels.begin; c < share.channels.end; ++c) {
          double total = 0;
          squeeze_row<A>(x.channel(c), p.pixels, norm.at(One<A>{}, c), &total);
          z[n * C + c] = A(total / double(p.pixels));
        }
      } else {
        const Part<A> part =
            part_of<A>(scratch, plan, p, share, n - first).of(share.thread - share.first_thread);
        for (std::int64_t c = 0; c < C; ++c) part.totals[c] = 0;
        squeeze_columns(x, share.region.pixels, C, norm, sums_of<A>(scratch, p, share),
                        part.totals);
      }
    }
    if (!rows) {
      share.wait();
      for (std::int64_t n = first; n < share.images.end; ++n)
        gather_squeeze(part_of<A>(scratch, plan, p, share, n - first), share.threads,
                       share.channels, p.pixels, Squeeze::avg, z + n * C);
    }
  }
  share.wait();
  excite(p, {f.w1, f.w2, f.b1, f.b2}, share, z + first * C, a + first * R, h + first * R,
         s + first * C);
  if (!rows) share.wait();
  for (std::int64_t n = first; n < share.images.end; ++n)
    scale_rows(p, norm, image<X>(f.x, n), image<X>(f.residual, n),
               piece_of(n, rows ? share.region.channels : share.region.pixels, rows_of(p)),
               s + n * C, image<X>(f.y, n), nullptr, plan.streaming);
}

void run_forward(const Problem& p, const NormForward& f, const Plan& plan, const Scratch& scratch) {
  with_types(p, [&](auto x, auto compute) {
    using X = typename decltype(x)::type;
    using A = typename decltype(compute)::type;
    const A *mean = static_cast<const A*>(f.mean), *var = static_cast<const A*>(f.var),
            *weight = static_cast<const A*>(f.weight), *bias = static_cast<const A*>(f.bias);
    A *scale = static_cast<A*>(scratch.by_channel[2]),
      *shift = static_cast<A*>(scratch.by_channel[3]);
    for (std::int64_t c = 0; c < p.channels; ++c) {
      scale[c] = (weight ? weight[c] : A(1)) / std::sqrt(var[c] + A(f.eps));
      shift[c] = bias ? bias[c] : A(0);
    }
    const NormOf<A> norm(Norm{mean, scale, shift, f.pre});
    share_out(p, plan,
              [&](const Share& share) { forward_group<A, X>(p, f, norm, plan, scratch, share); });
  });
}

// --- entry points
// ---------------------------------------------------------------------------------------

#define SE_NORM_ENTRY(name, Arguments)                                                           \
  void run_##name(const Problem& p, const Arguments& arguments, const NormScratch& scratch) {    \
    with_types(p, [&](auto x, auto compute) {                                                    \
      name<typename decltype(compute)::type, typename decltype(x)::type>(p, arguments, scratch); \
    });                                                                                          \
  }
SE_NORM_ENTRY(moments, NormMoments)
SE_NORM_ENTRY(squeeze, NormSqueeze)
SE_NORM_ENTRY(scale, NormScale)
SE_NORM_ENTRY(mask, NormMask)
SE_NORM_ENTRY(scale_backward, NormScaleBackward)
SE_NORM_ENTRY(squeeze_backward, NormSqueezeBackward)
#undef SE_NORM_ENTRY

}  // namespace

extern const NormKernels norm_kernels{run_moments, run_squeeze,        run_scale,
                                      run_mask,    run_scale_backward, run_squeeze_backward,
                                      run_forward};

}  // namespace se_kernels::SE_ISA
