// The forward kernels with a batch norm before the block: moments, squeeze, scale, a sweep each.
// Compiled once for each SE_NUMBER.
#include "norm.cuh"
#include "norm_sums.cuh"

namespace se_kernels::cuda {
namespace {

// t = (x - mean) scale + bias of the channels of some numbers.
template <class A, Channels channels>
struct Affine {
  PerChannel<A, channels> mean, scale, bias;
  SE_DEVICE A operator()(A x, int j) const { return (x - mean[j]) * scale[j] + bias[j]; }
};
template <class A, Channels channels, bool wide>
SE_DEVICE Affine<A, channels> affine_of(const NormParameters& p, const Octet& at) {
  return {per_channel<A, channels, wide>(p.mean, at), per_channel<A, channels, wide>(p.scale, at),
          per_channel<A, channels, wide>(p.bias, at)};
}

struct Nothing {};

// The sums that use(collect, begun, x, here) collects of x, eight numbers or one, of which `here`
// count.
template <class X, Layout layout, template <class, int> class Collect, class Begin, class Use,
          class Emit>
SE_DEVICE void sweep_x(const NormParameters& p, const NormBlock<X>& here, const Begin& begin,
                       const Use& use, const Emit& emit) {
  using A = Sum<X>;
  with_octets<X, layout>(p.access, [&](auto wide_, auto flat) {
    constexpr bool wide = decltype(wide_)::value;
    constexpr int Batch = kEights<X, wide, 64>;
    const auto load = [&](const Octet& at) {
      return load_eight<X, layout, wide, Reuse::keep>(p.x, at);
    };
    if constexpr (decltype(flat)::value) {
      walk_octets<X, layout, true, Batch>(
          here.tile, p.sizes, [](const Octet&) { return Nothing{}; }, load,
          [&](Nothing, const Octet& at, const auto& raw) {
            stage_eight<X>(here.work, staged_at(here.tile, at), raw);
          });
      block_barrier();
      reduce_staged<4, Collect<A, 1>>(
          here.tile, here.scratch, [&](const Octet& at) { return begin(at, wide_); },
          [&](int i) { return load_staged<X, 1>(here.work, i); },
          [&](Collect<A, 1>& collect, const auto& begun, const Raw<X, 1>& raw) {
            const A x[1] = {raw.v};
            use(collect, begun, x, 1);
          },
          emit);
    } else {
      reduce_octets<X, layout, wide, Batch, Collect>(
          here.tile, here.scratch, [&](const Octet& at) { return begin(at, wide_); }, load,
          [&](auto& collect, const auto& begun, const Octet& at, const auto& raw) {
            A x[kOctet];
            unpack_eight<X, wide>(raw, x);
            use(collect, begun, x, wide ? kOctet : at.here);
          },
          emit);
    }
  });
}

template <class X, Layout layout>
SE_KERNEL(kThreads, kNormBlocks<X>)
norm_moments(SE_PARAMETER NormParameters p) {
  using A = Sum<X>;
  const NormBlock<X> here(p);
  find_sums<Moments<A>>(
      p, here,
      [&](const auto& emit) {
        sweep_x<X, layout, CollectMoments>(
            p, here, [](const Octet&, auto) { return Nothing{}; },
            [](auto& collect, Nothing, const auto& x, int count) { collect.add(x, count); }, emit);
      },
      [&](std::int64_t at, const Moments<A>& sums) {
        static_cast<double*>(p.found[0])[at] = sums.mean();
        static_cast<double*>(p.found[1])[at] = double(sums.v[3]);
      });
}

// equation 2, of v = pre(t)
template <class X, Layout layout>
SE_KERNEL(kThreads, kNormBlocks<X>)
norm_squeeze(SE_PARAMETER NormParameters p) {
  using A = Sum<X>;
  constexpr Channels channels = kChannels<layout, false>;
  const NormBlock<X> here(p);
  find_sums<Totals<A, 1>>(
      p, here,
      [&](const auto& emit) {
        sweep_x<X, layout, Of<1>::Collect>(
            p, here,
            [&](const Octet& at, auto wide) {
              return affine_of<A, channels, decltype(wide)::value>(p, at);
            },
            [&](auto& collect, const Affine<A, channels>& affine, const auto& x, int count) {
              constexpr int W = std::extent_v<std::remove_reference_t<decltype(x)>>;
              A v[W];
              SE_UNROLL
              for (int j = 0; j < W; ++j) v[j] = affine(x[j], j);
              activate_norm(p.pre, v);
              SE_UNROLL
              for (int j = 0; j < W; ++j)
                if (j < count) collect.add(j, 0, v[j]);
            },
            emit);
      },
      [&](std::int64_t at, const Totals<A, 1>& sums) {
        static_cast<A*>(p.found[0])[at] = sums.v[0] / A(p.sizes.pixels);
      });
}

// The mask's bytes of a tile's rows, from a bit for each number of its run in shared memory (flat).
SE_DEVICE void store_flat_mask(const NormParameters& p, const Tile& tile,
                               const unsigned char* bits) {
  const int bytes = mask_row_bytes(Layout::nchw, p.sizes);
  for (int i = thread_index(); i < tile.channels * bytes; i += thread_count()) {
    const int row = i / bytes, byte = i % bytes, first = row * tile.p1 + byte * kOctet,
              left = tile.p1 - byte * kOctet;
    unsigned found = bits[first / kOctet];
    if (first % kOctet + smaller(left, kOctet) > kOctet)
      found |= unsigned(bits[first / kOctet + 1]) << kOctet;
    found >>= first % kOctet;
    if (left < kOctet) found &= (1u << left) - 1;
    const Octet at{tile.n0, tile.c0 + row, byte * kOctet, kOctet, kOctet};
    p.mask[mask_place<Layout::nchw>(at, p.sizes)] = std::uint8_t(found);
  }
}

// equation 4: y = post(s pre(t) + residual), and the mask
template <class X, Layout layout>
SE_KERNEL(kThreads, kNormBlocks<X>)
norm_scale(SE_PARAMETER NormParameters p) {
  using A = Sum<X>;
  const NormBlock<X> here(p);
  with_octets<X, layout>(p.access, [&](auto wide_, auto flat_) {
    constexpr bool wide = decltype(wide_)::value, flat = decltype(flat_)::value;
    constexpr Channels channels = kChannels<layout, flat>;
    struct Begun {
      Affine<A, channels> affine;
      PerChannel<A, channels> s;
    };
    struct Two {
      Eight<X, wide> x, residual;
    };
    walk_octets<X, layout, flat, kEights<X, wide, 32>>(
        here.tile, p.sizes,
        [&](const Octet& at) {
          return Begun{affine_of<A, channels, wide>(p, at),
                       per_channel<A, channels, wide>(image_of<A>(p.s, at.n, p.sizes), at)};
        },
        [&](const Octet& at) {
          Two raw{};
          raw.x = load_eight<X, layout, wide, Reuse::drop>(p.x, at);
          if (p.residual.data)
            raw.residual = load_eight<X, layout, wide, Reuse::drop>(p.residual, at);
          return raw;
        },
        [&](const Begun& begun, const Octet& at, const Two& raw) {
          A v[kOctet], r[kOctet];
          unpack_eight<X, wide>(raw.x, v), unpack_eight<X, wide>(raw.residual, r);
          SE_UNROLL
          for (int j = 0; j < kOctet; ++j) v[j] = begun.affine(v[j], j);
          activate_norm(p.pre, v);
          unsigned bits = 0;
          SE_UNROLL
          for (int j = 0; j < kOctet; ++j) {
            v[j] *= begun.s[j];
            if (p.residual.data) v[j] += r[j];
            const bool open = !(v[j] <= A(0));  // NaN stays
            if (open && (wide || j < at.here)) bits |= 1u << j;
            if (p.relu && !open) v[j] = 0;
          }
          store_eight<X, layout, wide, Reuse::drop>(p.y, at, v);
          if (!p.mask) return;
          if constexpr (flat)
            here.work[staged_at(here.tile, at) / kOctet] = std::uint8_t(bits);
          else
            p.mask[mask_place<layout>(at, p.sizes)] = std::uint8_t(bits);
        });
    if constexpr (flat) {
      if (!p.mask) return;
      block_barrier();
      store_flat_mask(p, here.tile, here.work);
    }
  });
}

}  // namespace

template <>
void launch_norm_forward<SE_NUMBER>(NormKernel kind, const NormParameters& p, Layout layout,
                                    const Gpu& gpu, void* stream) {
  const auto run = [&](const char* name, auto kernel) {
    launch_norm(name_of<SE_NUMBER>(name, layout), kernel, p, gpu, stream);
  };
  with_layout(layout, [&](auto constant) {
    constexpr Layout of = decltype(constant)::value;
    if (kind == NormKernel::moments) return run("norm_moments", norm_moments<SE_NUMBER, of>);
    if (kind == NormKernel::squeeze) return run("norm_squeeze", norm_squeeze<SE_NUMBER, of>);
    run("norm_scale", norm_scale<SE_NUMBER, of>);
  });
}

}  // namespace se_kernels::cuda
