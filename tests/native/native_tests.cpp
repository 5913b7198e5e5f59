// Forward and backward of the baseline against plain loops in double: every type of x, both
// layouts, with and without the final ReLU and its mask, channels and pixels around a vector's
// width, one thread and several.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <tuple>
#include <vector>

#include "api.h"

namespace {

using namespace se_kernels;
using Doubles = std::vector<double>;

// --- numbers as they are stored ------------------------------------------------------------------

std::int64_t size_of(DType type) {
  return type == DType::float64 ? 8 : type == DType::float32 ? 4 : 2;
}

// One unit in the last place of 1.
double eps_of(DType type) {
  switch (type) {
    case DType::bfloat16:
      return std::ldexp(1, -7);
    case DType::float16:
      return std::ldexp(1, -10);
    case DType::float32:
      return std::ldexp(1, -23);
    default:
      return std::ldexp(1, -52);
  }
}

double half_from(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double size =
      exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return bits & 0x8000 ? -size : size;
}

double read(const char* p, DType type) {
  if (type == DType::float64) {
    double v;
    std::memcpy(&v, p, 8);
    return v;
  }
  if (type == DType::float32) {
    float v;
    std::memcpy(&v, p, 4);
    return v;
  }
  std::uint16_t bits;
  std::memcpy(&bits, p, 2);
  if (type == DType::float16) return half_from(bits);
  const std::uint32_t wide = std::uint32_t(bits) << 16;
  float v;
  std::memcpy(&v, &wide, 4);
  return v;
}

// Multiples of 1/8 below 4: every type holds them exactly.
void write(char* p, DType type, double v) {
  const float narrow = float(v);
  std::uint32_t bits;
  std::memcpy(&bits, &narrow, 4);
  if (type == DType::float64) {
    std::memcpy(p, &v, 8);
  } else if (type == DType::float32) {
    std::memcpy(p, &narrow, 4);
  } else if (type == DType::bfloat16) {
    const auto high = std::uint16_t(bits >> 16);
    std::memcpy(p, &high, 2);
  } else {
    const int exponent = int(bits >> 23 & 255) - 127 + 15;
    const auto half = std::uint16_t(
        v == 0 ? 0 : (bits >> 16 & 0x8000) | unsigned(exponent) << 10 | (bits >> 13 & 1023));
    std::memcpy(p, &half, 2);
  }
}

struct Tensor {
  DType type;
  std::vector<char> memory;
  Tensor(DType type, std::int64_t numbers) : type(type), memory(numbers * size_of(type)) {}
  Tensor(DType type, const Doubles& values) : Tensor(type, std::int64_t(values.size())) {
    for (std::size_t i = 0; i < values.size(); ++i)
      write(&memory[i * size_of(type)], type, values[i]);
  }
  void* data() { return memory.data(); }
  double operator[](std::int64_t i) const { return read(&memory[i * size_of(type)], type); }
};

// --- the definition ------------------------------------------------------------------------------

struct Expected {
  Doubles z, a, s, y, dx, dw1, dw2;
};

struct Case {
  std::int64_t N, C, R, P;
  DType x_type, w_type;
  Layout layout;
  Squeeze squeeze;
  int threads;
  std::int64_t at(std::int64_t n, std::int64_t c, std::int64_t p) const {
    return layout == Layout::nchw ? (n * C + c) * P + p : (n * P + p) * C + c;
  }
  std::int64_t row() const { return layout == Layout::nchw ? P : C; }
  std::int64_t mask_bytes() const { return N * C * P / row() * ((row() + 7) / 8); }
  // The bit of the i-th element in memory.
  bool bit(const std::vector<std::uint8_t>& mask, std::int64_t i) const {
    const std::int64_t in_row = i % row();
    return mask[i / row() * ((row() + 7) / 8) + in_row / 8] >> in_row % 8 & 1;
  }
};

// ReLU, sigmoid; with a squeeze by maximum forward only.
Expected define(const Case& k, const Doubles& x, const Doubles& w1, const Doubles& w2,
                const Doubles& dy) {
  const auto [N, C, R, P] = std::tuple{k.N, k.C, k.R, k.P};
  Expected e{Doubles(N * C),     Doubles(N * R), Doubles(N * C), Doubles(N * C * P),
             Doubles(N * C * P), Doubles(R * C), Doubles(C * R)};
  for (std::int64_t n = 0; n < N; ++n) {
    Doubles h(R), de(C), da(R), dz(C);
    for (std::int64_t c = 0; c < C; ++c) {
      double total = 0, peak = -INFINITY;
      for (std::int64_t p = 0; p < P; ++p) {
        total += x[k.at(n, c, p)];
        peak = std::fmax(peak, x[k.at(n, c, p)]);
      }
      e.z[n * C + c] = k.squeeze == Squeeze::avg ? total / double(P) : peak;
    }
    for (std::int64_t r = 0; r < R; ++r) {
      for (std::int64_t c = 0; c < C; ++c) e.a[n * R + r] += w1[r * C + c] * e.z[n * C + c];
      h[r] = std::fmax(0, e.a[n * R + r]);
    }
    for (std::int64_t c = 0; c < C; ++c) {
      double gate = 0, ds = 0;
      for (std::int64_t r = 0; r < R; ++r) gate += w2[c * R + r] * h[r];
      const double s = e.s[n * C + c] = 1 / (1 + std::exp(-gate));
      for (std::int64_t p = 0; p < P; ++p) {
        e.y[k.at(n, c, p)] = s * x[k.at(n, c, p)];
        ds += dy[k.at(n, c, p)] * x[k.at(n, c, p)];
      }
      de[c] = ds * s * (1 - s);
    }
    for (std::int64_t r = 0; r < R; ++r)
      for (std::int64_t c = 0; c < C; ++c) {
        if (e.a[n * R + r] > 0) da[r] += w2[c * R + r] * de[c];
        e.dw2[c * R + r] += de[c] * h[r];
      }
    for (std::int64_t c = 0; c < C; ++c) {
      for (std::int64_t r = 0; r < R; ++r) {
        dz[c] += da[r] * w1[r * C + c];
        e.dw1[r * C + c] += da[r] * e.z[n * C + c];
      }
      for (std::int64_t p = 0; p < P; ++p)
        e.dx[k.at(n, c, p)] = dy[k.at(n, c, p)] * e.s[n * C + c] + dz[c] / double(P);
    }
  }
  return e;
}

// --- the comparison ------------------------------------------------------------------------------

int failures = 0, comparisons = 0;

void compare(const Case& k, const char* what, const Tensor& got, const Doubles& expected,
             double eps) {
  double size = 0;
  for (double v : expected) size = std::fmax(size, std::fabs(v));
  for (std::size_t i = 0; i < expected.size(); ++i) {
    ++comparisons;
    // a number is rounded once when it is stored, and sums of n terms err by at most n eps
    const double terms = double(k.P + k.C + k.N);
    const double tolerance = (eps_of(got.type) + terms * eps) * (size + 1);
    if (std::fabs(got[std::int64_t(i)] - expected[i]) <= tolerance) continue;
    std::printf(
        "%s: N %d C %d R %d P %d x %d w %d layout %d squeeze %d threads %d: at %d got %g, "
        "expected %g within %g\n",
        what, int(k.N), int(k.C), int(k.R), int(k.P), int(k.x_type), int(k.w_type), int(k.layout),
        int(k.squeeze), k.threads, int(i), got[std::int64_t(i)], expected[i], tolerance);
    ++failures;
    return;
  }
}

void test(const Case& k, std::mt19937& random) {
  const auto draw = [&](std::int64_t count) {
    Doubles values(count);
    for (double& v : values) v = double(int(random() % 33) - 16) / 8;
    return values;
  };
  const std::int64_t N = k.N, C = k.C, R = k.R, P = k.P;
  const Doubles x = draw(N * C * P), w1 = draw(R * C), w2 = draw(C * R), dy = draw(N * C * P);
  const Expected e = define(k, x, w1, w2, dy);
  const bool wide = k.x_type == DType::float64 || k.w_type == DType::float64;
  const DType compute = wide ? DType::float64 : DType::float32;
  const double eps = eps_of(compute);

  const std::int64_t channel = k.layout == Layout::nchw ? P : 1,
                     pixel = k.layout == Layout::nchw ? 1 : C;
  Tensor tx(k.x_type, x), tw1(k.w_type, w1), tw2(k.w_type, w2), tdy(k.x_type, dy);
  for (const Post post : {Post::none, Post::relu}) {
    const Problem p{N,        C,         R,         P, k.x_type,      k.w_type,
                    k.layout, k.squeeze, Act::relu, 0, Gate::sigmoid, post,
                    k.threads};
    Tensor y(k.x_type, N * C * P), z(compute, N * C), a(compute, N * R), s(compute, N * C);
    std::vector<std::uint8_t> mask(k.mask_bytes());
    Forward f{};
    f.x = {tx.data(), C * P, channel, pixel};
    f.w1 = tw1.data(), f.w2 = tw2.data();
    f.y = {y.data(), C * P, channel, pixel};
    f.z = z.data(), f.a = a.data(), f.s = s.data();
    f.mask = post == Post::relu ? mask.data() : nullptr;
    forward(p, f);
    Doubles expected_y = e.y, g = dy;
    if (post == Post::relu)
      for (std::int64_t i = 0; i < N * C * P; ++i) {
        const bool open = e.y[i] > 0;  // the sign of x
        if (!open) expected_y[i] = g[i] = 0;
        if (k.bit(mask, i) != open) ++failures, std::printf("mask: bit %d\n", int(i));
      }
    compare(k, "z", z, e.z, eps);
    compare(k, "a", a, e.a, eps);
    compare(k, "s", s, e.s, eps);
    compare(k, "y", y, expected_y, eps);
    if (k.squeeze != Squeeze::avg) continue;

    const Expected d = define(k, x, w1, w2, g);
    Tensor dx(k.x_type, N * C * P), dr(k.x_type, N * C * P);
    Tensor dw1(k.w_type, R * C), dw2(k.w_type, C * R);
    Backward b{};
    b.x = f.x, b.dy = {tdy.data(), C * P, channel, pixel};
    b.w1 = f.w1, b.w2 = f.w2, b.z = f.z, b.a = f.a, b.s = f.s;
    b.mask = f.mask;
    b.dx = {dx.data(), C * P, channel, pixel};
    b.dw1 = dw1.data(), b.dw2 = dw2.data();
    backward(p, b);
    compare(k, "dx", dx, d.dx, eps);
    compare(k, "dw1", dw1, d.dw1, eps);
    compare(k, "dw2", dw2, d.dw2, eps);
    if (!b.mask) continue;
    b.dr = {dr.data(), C * P, channel, pixel};
    backward(p, b);
    compare(k, "dr", dr, g, eps);
    compare(k, "dx beside dr", dx, d.dx, eps);
  }
}

}  // namespace

int main() {
  std::mt19937 random(0);
  for (DType type : {DType::float32, DType::float64, DType::bfloat16, DType::float16})
    for (Layout layout : {Layout::nchw, Layout::nhwc})
      for (Squeeze squeeze : {Squeeze::avg, Squeeze::max})
        for (int threads : {1, 3})
          for (std::int64_t channels : {1, 3, 8, 37})
            for (std::int64_t pixels : {1, 7, 49}) {
              test({3, channels, 2, pixels, type, type, layout, squeeze, threads}, random);
              test({2, channels, 5, pixels, type, DType::float32, layout, squeeze, threads},
                   random);
            }
  test({2, 5, 3, 9, DType::float32, DType::float64, Layout::nchw, Squeeze::avg, 2}, random);
  std::printf("%s: %d numbers compared, %d tensors differ\n", instruction_set(), comparisons,
              failures);
  return failures != 0;
}
