// Sums that do not depend on the order of their terms, for the deterministic backward. Also
// compiles for the host, where the tests run it.
//
// A term is a weight times a gradient. Both are scaled by powers of two so that the largest
// possible term is below 2^bits, and the product is rounded to an integer; integers are summed
// exactly. With float32 the error of a term is thus at most 2^-29 of the largest weight times the
// largest gradient of the call (an int64 has room for the sum of 2^32 such terms), and with float64
// at most 2^-51 of it, or more where a token may have more than 2^10 terms.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../inline.h"

namespace sparsedet::cuda {

// Largest absolute values of a call, one or both NaN or infinite if any number was.
template <typename A>
struct Bounds {
  A weight, grad;
};

// Room of a term, for sums of up to `terms` of them.
template <typename A>
inline int32_t bits_of_terms(int64_t terms) {
  int32_t room = 62;
  while (terms > 1 && room > 0) {
    terms = (terms + 1) / 2;
    --room;
  }
  const int32_t most = std::is_same_v<A, float> ? 30 : 52;
  return room < most ? room : most;
}

// What weights and gradients are multiplied by.
template <typename A>
struct Units {
  A weight, grad;
};

// A power of two above the bound; not below 2^least, so that all factors are finite.
template <typename A>
SPARSEDET_INLINE int32_t exponent_of(A bound) {
  constexpr int32_t least = std::is_same_v<A, float> ? -96 : -900;
  if (!(bound > 0) || bound - bound != 0) return least;
  const int32_t exponent = std::ilogb(bound) + 1;
  return exponent < least ? least : exponent;
}

template <typename A>
SPARSEDET_INLINE Units<A> fixed_units(const Bounds<A>& bounds, int32_t bits) {
  return {std::ldexp(A{1}, -exponent_of(bounds.weight)),
          std::ldexp(A{1}, bits - exponent_of(bounds.grad))};
}

template <typename Sum, typename A>
SPARSEDET_INLINE Units<A> units_of(const Bounds<A>* bounds, int32_t bits) {
  if constexpr (std::is_same_v<Sum, int64_t>) return fixed_units(*bounds, bits);
  return {1, 1};
}

SPARSEDET_INLINE int64_t nearest(float number) {
#if defined(__CUDA_ARCH__)
  return __float2int_rn(number);
#else
  return static_cast<int64_t>(std::nearbyint(number));
#endif
}

SPARSEDET_INLINE int64_t nearest(double number) {
#if defined(__CUDA_ARCH__)
  return __double2ll_rn(number);
#else
  return static_cast<int64_t>(std::nearbyint(number));
#endif
}

template <typename Sum, typename A>
SPARSEDET_INLINE void add_product(Sum& sum, A weight, A grad) {
  if constexpr (std::is_same_v<Sum, int64_t>) {
    sum += nearest(weight * grad);
  } else {
    sum += weight * grad;
  }
}

// The number that a sum stands for: NaN if any number of the call was not finite.
template <typename A>
SPARSEDET_INLINE A from_fixed(int64_t sum, const Bounds<A>& bounds, int32_t bits) {
  const int32_t exponent = exponent_of(bounds.weight) + exponent_of(bounds.grad) - bits;
  const double number = std::ldexp(static_cast<double>(sum), exponent);
  const A doubt = (bounds.weight - bounds.weight) + (bounds.grad - bounds.grad);  // 0 or NaN
  return static_cast<A>(number) + doubt;
}

}  // namespace sparsedet::cuda
