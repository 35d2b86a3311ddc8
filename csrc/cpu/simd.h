// Vectors of channels or points, and functions compiled for an instruction set.
//
// GCC's vector extension (also in clang) is plain arithmetic on a fixed number of lanes. A function
// with a target attribute compiles it for that instruction set, so that one library serves all
// processors; everything that such a function calls must be inlined into it (SPARSEDET_INLINE).
#pragma once

#include <cstdint>
#include <cstring>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../sampling.h"

#if defined(__x86_64__)
#define SPARSEDET_TARGET_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define SPARSEDET_TARGET_AVX2 __attribute__((target("avx2,fma")))
#endif

namespace sparsedet::cpu {

using c10::BFloat16;
using c10::Half;

// Vector<E, N>: N lanes of E.
template <typename E, int N>
struct VectorOf {
  typedef E type __attribute__((vector_size(N * sizeof(E))));
};
template <typename E, int N>
using Vector = typename VectorOf<E, N>::type;

// Real and integer vectors of one register of a given width, lane by lane of the same size.
template <typename A, int kBytes>
struct Simd {
  static constexpr int kLanes = kBytes / static_cast<int>(sizeof(A));
  using Int = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  using Reals = Vector<A, kLanes>;
  using Ints = Vector<Int, kLanes>;
};

template <typename To, typename From>
SPARSEDET_INLINE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a change of type, not of size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <typename V, typename E>
SPARSEDET_INLINE V load_same(const E* from) {
  V v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

// Loads N elements in the precision of the sums.
template <int N>
SPARSEDET_INLINE Vector<float, N> load(const float* from) {
  return load_same<Vector<float, N>>(from);
}

template <int N>
SPARSEDET_INLINE Vector<double, N> load(const double* from) {
  return load_same<Vector<double, N>>(from);
}

template <int N>
SPARSEDET_INLINE Vector<uint32_t, N> load_half_bits(const void* from) {
  return __builtin_convertvector(load_same<Vector<uint16_t, N>>(from), Vector<uint32_t, N>);
}

template <int N>
SPARSEDET_INLINE Vector<float, N> load(const BFloat16* from) {
  return bits_as<Vector<float, N>>(load_half_bits<N>(from) << 16);
}

template <int N>
SPARSEDET_INLINE Vector<float, N> load(const Half* from) {
  using Bits = Vector<uint32_t, N>;
  const Bits bits = load_half_bits<N>(from);
  // The biases of the exponents differ by 112: the product is exact, for subnormal numbers too.
  const auto scaled = bits_as<Vector<float, N>>((bits & 0x7fffu) << 13) * 0x1p112f;
  const Bits not_finite = bits_as<Bits>((bits & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return bits_as<Vector<float, N>>(bits_as<Bits>(scaled) | not_finite | ((bits & 0x8000u) << 16));
}

template <typename T, typename V>
SPARSEDET_INLINE void store(T* to, const V& v) {
  constexpr int n = sizeof(V) / sizeof(v[0]);
  for (int i = 0; i < n; ++i) to[i] = static_cast<T>(v[i]);
}

template <typename V>
SPARSEDET_INLINE auto sum_of_lanes(const V& v) {
  constexpr int n = sizeof(V) / sizeof(v[0]);
  std::remove_cv_t<std::remove_reference_t<decltype(v[0])>> lanes[n];
  std::memcpy(lanes, &v, sizeof(v));
  for (int width = n / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// The operations of sampling.h, lane by lane.
struct Lanes {
  template <typename M, typename V>
  static SPARSEDET_INLINE V select(const M& mask, const V& yes, const V& no) {
    return mask ? yes : no;
  }
  template <typename A, typename I>
  static SPARSEDET_INLINE A to_real(const I& i) {
    return __builtin_convertvector(i, A);
  }
  template <typename I, typename A>
  static SPARSEDET_INLINE I to_int(const A& x) {
    return __builtin_convertvector(x, I);
  }
};

}  // namespace sparsedet::cpu
