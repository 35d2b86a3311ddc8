// Registers of samples or channels in plain C++.
//
// GCC's vector extension (also in clang) is arithmetic on a fixed number of lanes; it becomes SSE2,
// NEON or whatever the file is compiled for. vector_avx2.h and vector_avx512.h have the same
// members for float32 in intrinsics, because the speed of compiled code varied widely for
// operations that are not plain arithmetic.
#pragma once

#include <cstdint>
#include <cstring>

#include "problem.h"

#define SPARSEDET_HOT inline __attribute__((always_inline))

namespace sparsedet::cpu {
namespace {

template <typename E, int N>
struct LanesOf {
  typedef E type __attribute__((vector_size(N * sizeof(E))));
};
template <typename E, int N>
using Lanes = typename LanesOf<E, N>::type;

template <typename A, int kBytes>
struct Vector {
  static constexpr int kLanes = kBytes / static_cast<int>(sizeof(A));
  static constexpr int kMostRegisters = 8;  // that a sum may take
  using Real = A;
  using Int = IntOf<A>;
  using Reals = Lanes<A, kLanes>;
  using Ints = Lanes<Int, kLanes>;

  static SPARSEDET_HOT Reals set(A x) { return x - Reals{}; }

  // Elements of value are widened to the type of the sums, and rounded to nearest when they are
  // stored.
  template <typename T>
  static SPARSEDET_HOT Reals load(const T* from) {
    return load_some(from, kLanes);
  }
  static SPARSEDET_HOT Reals load(const A* from) {
    Reals x;
    std::memcpy(&x, from, sizeof(x));
    return x;
  }
  static SPARSEDET_HOT Ints load_ints(const Int* from) {
    Ints x;
    std::memcpy(&x, from, sizeof(x));
    return x;
  }
  template <typename T>
  static SPARSEDET_HOT void store(T* to, Reals x) {
    store_some(to, x, kLanes);
  }
  static SPARSEDET_HOT void store(A* to, Reals x) { std::memcpy(to, &x, sizeof(x)); }
  static SPARSEDET_HOT void store_ints(Int* to, Ints x) { std::memcpy(to, &x, sizeof(x)); }

  // The first `count` lanes, at most all; the others are read as zero.
  template <typename T>
  static SPARSEDET_HOT Reals load_some(const T* from, int64_t count) {
    A x[kLanes] = {};
    for (int64_t i = 0; i < count && i < kLanes; ++i) x[i] = static_cast<A>(from[i]);
    return load(x);
  }
  template <typename T>
  static SPARSEDET_HOT void store_some(T* to, Reals x, int64_t count) {
    for (int64_t i = 0; i < count && i < kLanes; ++i) to[i] = static_cast<T>(x[i]);
  }

  // The first `count` pairs (x, y).
  static SPARSEDET_HOT void load_pairs(const A* from, int64_t count, Reals& x, Reals& y) {
    A xs[kLanes] = {}, ys[kLanes] = {};
    for (int64_t i = 0; i < count && i < kLanes; ++i) {
      xs[i] = from[2 * i];
      ys[i] = from[2 * i + 1];
    }
    x = load(xs);
    y = load(ys);
  }
  static SPARSEDET_HOT void store_pairs(A* to, Reals x, Reals y, int64_t count) {
    for (int64_t i = 0; i < count && i < kLanes; ++i) {
      to[2 * i] = x[i];
      to[2 * i + 1] = y[i];
    }
  }

  static SPARSEDET_HOT Reals fma(Reals a, Reals b, Reals c) { return a * b + c; }
  static SPARSEDET_HOT Ints add(Ints a, Ints b) { return a + b; }
  static SPARSEDET_HOT Ints multiply(Ints a, Ints b) { return a * b; }
  // The second argument where the first is NaN.
  static SPARSEDET_HOT Reals max(Reals x, Reals least) { return x > least ? x : least; }
  static SPARSEDET_HOT Reals min(Reals x, Reals most) { return x < most ? x : most; }
  static SPARSEDET_HOT Reals abs(Reals x) { return x < Reals{} ? -x : x; }
  static SPARSEDET_HOT Ints truncate(Reals x) { return __builtin_convertvector(x, Ints); }
  static SPARSEDET_HOT Reals to_reals(Ints x) { return __builtin_convertvector(x, Reals); }

  // Derivative of max(0, 1 - |x|), from above where there are two.
  static SPARSEDET_HOT Reals slope_of_hat(Reals x) {
    const Reals one = set(1), zero = {};
    const Reals inner = x < zero ? one : -one;
    const Reals low = x >= -one ? inner : zero;
    return x < one ? low : zero;
  }

  // Writes the sums over the lanes of the corners' registers.
  static SPARSEDET_HOT void store_sums(A* to, const Reals (&x)[kCorners]) {
    for (int c = 0; c < kCorners; ++c) {
      A lanes[kLanes];
      store(lanes, x[c]);
      for (int width = kLanes / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
      }
      to[c] = lanes[0];
    }
  }
  // Reads those of kLanes samples: corner c of all of them into x[c].
  static SPARSEDET_HOT void load_sums(const A* from, Reals (&x)[kCorners]) {
    for (int c = 0; c < kCorners; ++c) {
      A lanes[kLanes];
      for (int i = 0; i < kLanes; ++i) lanes[i] = from[kCorners * i + c];
      x[c] = load(lanes);
    }
  }
};

}  // namespace
}  // namespace sparsedet::cpu
