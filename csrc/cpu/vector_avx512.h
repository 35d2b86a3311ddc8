// Registers of 16 float32 in AVX-512; vector.h says what the members do.
#pragma once

#include <immintrin.h>

#include "vector.h"

namespace sparsedet::cpu {
namespace {

struct VectorAvx512 {
  static constexpr int kLanes = 16;
  static constexpr int kMostRegisters = 16;
  using Real = float;
  using Int = int32_t;
  using Reals = __m512;
  using Ints = __m512i;

  // A mask of the first `count` lanes, none to all.
  static SPARSEDET_HOT __mmask16 first(int64_t count) {
    const int64_t some = count < 0 ? 0 : count < kLanes ? count : kLanes;
    return static_cast<__mmask16>((1u << some) - 1);
  }

  static SPARSEDET_HOT Reals widen(__m256i bits, const BFloat16*) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static SPARSEDET_HOT Reals widen(__m256i bits, const Half*) { return _mm512_cvtph_ps(bits); }
  static SPARSEDET_HOT __m256i narrow(Reals x, const BFloat16*) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i rounded = _mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
  }
  static SPARSEDET_HOT __m256i narrow(Reals x, const Half*) {
    return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  static SPARSEDET_HOT Reals set(float x) { return _mm512_set1_ps(x); }
  template <typename T>
  static SPARSEDET_HOT Reals load(const T* from) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), from);
  }
  static SPARSEDET_HOT Reals load(const float* from) { return _mm512_loadu_ps(from); }
  static SPARSEDET_HOT Ints load_ints(const Int* from) { return _mm512_loadu_si512(from); }
  template <typename T>
  static SPARSEDET_HOT void store(T* to, Reals x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(x, to));
  }
  static SPARSEDET_HOT void store(float* to, Reals x) { _mm512_storeu_ps(to, x); }
  static SPARSEDET_HOT void store_ints(Int* to, Ints x) { _mm512_storeu_si512(to, x); }

  template <typename T>
  static SPARSEDET_HOT Reals load_some(const T* from, int64_t count) {
    return widen(_mm256_maskz_loadu_epi16(first(count), from), from);
  }
  static SPARSEDET_HOT Reals load_some(const float* from, int64_t count) {
    return _mm512_maskz_loadu_ps(first(count), from);
  }
  template <typename T>
  static SPARSEDET_HOT void store_some(T* to, Reals x, int64_t count) {
    _mm256_mask_storeu_epi16(to, first(count), narrow(x, to));
  }
  static SPARSEDET_HOT void store_some(float* to, Reals x, int64_t count) {
    _mm512_mask_storeu_ps(to, first(count), x);
  }

  static SPARSEDET_HOT void load_pairs(const float* from, int64_t count, Reals& x, Reals& y) {
    const Reals low = load_some(from, 2 * count);
    const Reals high = load_some(from + kLanes, 2 * count - kLanes);
    const Ints even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    x = _mm512_permutex2var_ps(low, even, high);
    y = _mm512_permutex2var_ps(low, _mm512_add_epi32(even, _mm512_set1_epi32(1)), high);
  }
  static SPARSEDET_HOT void store_pairs(float* to, Reals x, Reals y, int64_t count) {
    const Ints low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const Ints high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    store_some(to, _mm512_permutex2var_ps(x, low, y), 2 * count);
    store_some(to + kLanes, _mm512_permutex2var_ps(x, high, y), 2 * count - kLanes);
  }

  static SPARSEDET_HOT Reals fma(Reals a, Reals b, Reals c) { return _mm512_fmadd_ps(a, b, c); }
  static SPARSEDET_HOT Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static SPARSEDET_HOT Ints multiply(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
  static SPARSEDET_HOT Reals max(Reals x, Reals least) { return _mm512_max_ps(x, least); }
  static SPARSEDET_HOT Reals min(Reals x, Reals most) { return _mm512_min_ps(x, most); }
  static SPARSEDET_HOT Reals abs(Reals x) { return _mm512_abs_ps(x); }
  static SPARSEDET_HOT Ints truncate(Reals x) { return _mm512_cvttps_epi32(x); }
  static SPARSEDET_HOT Reals to_reals(Ints x) { return _mm512_cvtepi32_ps(x); }

  static SPARSEDET_HOT Reals slope_of_hat(Reals x) {
    const __mmask16 inside =
        _mm512_cmp_ps_mask(x, set(-1), _CMP_GE_OQ) & _mm512_cmp_ps_mask(x, set(1), _CMP_LT_OQ);
    const __mmask16 rising = _mm512_cmp_ps_mask(x, set(0), _CMP_LT_OQ);
    return _mm512_maskz_mov_ps(inside, _mm512_mask_mov_ps(set(-1), rising, set(1)));
  }

  // Adds the four registers up, two lanes into one at a time, until a lane is left for each.
  static SPARSEDET_HOT void store_sums(float* to, const Reals (&x)[kCorners]) {
    const Reals a = _mm512_unpacklo_ps(x[0], x[1]) + _mm512_unpackhi_ps(x[0], x[1]);
    const Reals b = _mm512_unpacklo_ps(x[2], x[3]) + _mm512_unpackhi_ps(x[2], x[3]);
    const __m512d a_pairs = _mm512_castps_pd(a), b_pairs = _mm512_castps_pd(b);
    const Reals all = _mm512_castpd_ps(_mm512_unpacklo_pd(a_pairs, b_pairs)) +
                      _mm512_castpd_ps(_mm512_unpackhi_pd(a_pairs, b_pairs));
    const __m256 half = _mm512_castps512_ps256(all) + _mm512_extractf32x8_ps(all, 1);
    _mm_storeu_ps(to, _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
  }
  static SPARSEDET_HOT void load_sums(const float* from, Reals (&x)[kCorners]) {
    const Ints pairs = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    const Ints others = _mm512_add_epi32(pairs, _mm512_set1_epi32(2));
    const Reals r[4] = {load(from), load(from + 16), load(from + 32), load(from + 48)};
    const Reals low01 = _mm512_permutex2var_ps(r[0], pairs, r[1]);
    const Reals low23 = _mm512_permutex2var_ps(r[0], others, r[1]);
    const Reals high01 = _mm512_permutex2var_ps(r[2], pairs, r[3]);
    const Reals high23 = _mm512_permutex2var_ps(r[2], others, r[3]);
    x[0] = _mm512_shuffle_f32x4(low01, high01, 0x44);
    x[1] = _mm512_shuffle_f32x4(low01, high01, 0xee);
    x[2] = _mm512_shuffle_f32x4(low23, high23, 0x44);
    x[3] = _mm512_shuffle_f32x4(low23, high23, 0xee);
  }
};

}  // namespace
}  // namespace sparsedet::cpu
