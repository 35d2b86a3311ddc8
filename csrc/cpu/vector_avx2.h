// Registers of 8 float32 in AVX2; vector.h says what the members do.
#pragma once

#include <immintrin.h>

#include "vector.h"

namespace sparsedet::cpu {
namespace {

struct VectorAvx2 {
  static constexpr int kLanes = 8;
  static constexpr int kMostRegisters = 8;
  using Real = float;
  using Int = int32_t;
  using Reals = __m256;
  using Ints = __m256i;

  // All bits of the first `count` lanes.
  static SPARSEDET_HOT Ints first(int64_t count) {
    const int some = count < 0 ? 0 : count < kLanes ? static_cast<int>(count) : kLanes;
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(some), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static SPARSEDET_HOT Reals widen(__m128i bits, const BFloat16*) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static SPARSEDET_HOT Reals widen(__m128i bits, const Half*) { return _mm256_cvtph_ps(bits); }
  static SPARSEDET_HOT __m128i narrow(Reals x, const BFloat16*) {
    const Ints bits = _mm256_castps_si256(x);
    const Ints odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const Ints up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const Reals nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    const Reals quiet = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    const Reals rounded = _mm256_blendv_ps(_mm256_castsi256_ps(up), quiet, nan);
    const Ints high = _mm256_srli_epi32(_mm256_castps_si256(rounded), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  }
  static SPARSEDET_HOT __m128i narrow(Reals x, const Half*) {
    return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  static SPARSEDET_HOT Reals set(float x) { return _mm256_set1_ps(x); }
  template <typename T>
  static SPARSEDET_HOT Reals load(const T* from) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)), from);
  }
  static SPARSEDET_HOT Reals load(const float* from) { return _mm256_loadu_ps(from); }
  static SPARSEDET_HOT Ints load_ints(const Int* from) {
    return _mm256_loadu_si256(reinterpret_cast<const Ints*>(from));
  }
  template <typename T>
  static SPARSEDET_HOT void store(T* to, Reals x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow(x, to));
  }
  static SPARSEDET_HOT void store(float* to, Reals x) { _mm256_storeu_ps(to, x); }
  static SPARSEDET_HOT void store_ints(Int* to, Ints x) {
    _mm256_storeu_si256(reinterpret_cast<Ints*>(to), x);
  }

  // There is no masked access to elements of 16 bits.
  template <typename T>
  static SPARSEDET_HOT Reals load_some(const T* from, int64_t count) {
    T some[kLanes];
    std::memset(static_cast<void*>(some), 0, sizeof(some));
    for (int64_t i = 0; i < count && i < kLanes; ++i) some[i] = from[i];
    return load(some);
  }
  static SPARSEDET_HOT Reals load_some(const float* from, int64_t count) {
    return _mm256_maskload_ps(from, first(count));
  }
  template <typename T>
  static SPARSEDET_HOT void store_some(T* to, Reals x, int64_t count) {
    T some[kLanes];
    store(some, x);
    for (int64_t i = 0; i < count && i < kLanes; ++i) to[i] = some[i];
  }
  static SPARSEDET_HOT void store_some(float* to, Reals x, int64_t count) {
    _mm256_maskstore_ps(to, first(count), x);
  }

  static SPARSEDET_HOT Reals halves(Reals a, Reals b, bool high) {
    return high ? _mm256_permute2f128_ps(a, b, 0x31) : _mm256_permute2f128_ps(a, b, 0x20);
  }
  static SPARSEDET_HOT void load_pairs(const float* from, int64_t count, Reals& x, Reals& y) {
    const Reals a = load_some(from, 2 * count), b = load_some(from + kLanes, 2 * count - kLanes);
    const Reals low = halves(a, b, false), high = halves(a, b, true);
    x = _mm256_shuffle_ps(low, high, 0x88);
    y = _mm256_shuffle_ps(low, high, 0xdd);
  }
  static SPARSEDET_HOT void store_pairs(float* to, Reals x, Reals y, int64_t count) {
    const Reals a = _mm256_unpacklo_ps(x, y), b = _mm256_unpackhi_ps(x, y);
    store_some(to, halves(a, b, false), 2 * count);
    store_some(to + kLanes, halves(a, b, true), 2 * count - kLanes);
  }

  static SPARSEDET_HOT Reals fma(Reals a, Reals b, Reals c) { return _mm256_fmadd_ps(a, b, c); }
  static SPARSEDET_HOT Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static SPARSEDET_HOT Ints multiply(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
  static SPARSEDET_HOT Reals max(Reals x, Reals least) { return _mm256_max_ps(x, least); }
  static SPARSEDET_HOT Reals min(Reals x, Reals most) { return _mm256_min_ps(x, most); }
  static SPARSEDET_HOT Reals abs(Reals x) { return _mm256_andnot_ps(set(-0.0f), x); }
  static SPARSEDET_HOT Ints truncate(Reals x) { return _mm256_cvttps_epi32(x); }
  static SPARSEDET_HOT Reals to_reals(Ints x) { return _mm256_cvtepi32_ps(x); }

  static SPARSEDET_HOT Reals slope_of_hat(Reals x) {
    const Reals inside =
        _mm256_and_ps(_mm256_cmp_ps(x, set(-1), _CMP_GE_OQ), _mm256_cmp_ps(x, set(1), _CMP_LT_OQ));
    const Reals rising = _mm256_cmp_ps(x, set(0), _CMP_LT_OQ);
    return _mm256_and_ps(inside, _mm256_blendv_ps(set(-1), set(1), rising));
  }

  static SPARSEDET_HOT void store_sums(float* to, const Reals (&x)[kCorners]) {
    const Reals all = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }
  static SPARSEDET_HOT void load_sums(const float* from, Reals (&x)[kCorners]) {
    const Reals r[4] = {load(from), load(from + 8), load(from + 16), load(from + 24)};
    const Reals even[2] = {_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpackhi_ps(r[0], r[1])};
    const Reals odd[2] = {_mm256_unpacklo_ps(r[2], r[3]), _mm256_unpackhi_ps(r[2], r[3])};
    const Ints order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int c = 0; c < kCorners; c += 2) {
      const Reals a = even[c / 2], b = odd[c / 2];
      x[c] = _mm256_permutevar8x32_ps(_mm256_shuffle_ps(a, b, 0x44), order);
      x[c + 1] = _mm256_permutevar8x32_ps(_mm256_shuffle_ps(a, b, 0xee), order);
    }
  }
};

}  // namespace
}  // namespace sparsedet::cpu
