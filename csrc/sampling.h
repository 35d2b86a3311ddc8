// Arithmetic of one sampling point in the CUDA kernels; compiles for the host too, where tests run
// it. The CPU kernels have a form of their own that suits vectors (cpu/set_up.h).
//
// A location in [0, 1] reads its level at the continuous index location * size - 0.5 (cell
// centres). The two neighbours of each axis take part with linear weights; a neighbour outside of
// the level has weight zero, and so has everything around a location that is not finite.
//
// All of it is generic in the real type A and the integer type I; Ops holds the operations that
// depend on whether these are scalars.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SPARSEDET_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define SPARSEDET_INLINE inline __attribute__((always_inline))
#else
#define SPARSEDET_INLINE inline
#endif

namespace sparsedet {

struct Scalar {
  template <typename T>
  static SPARSEDET_INLINE T select(bool condition, T yes, T no) {
    return condition ? yes : no;
  }
  template <typename A>
  static SPARSEDET_INLINE A to_real(int32_t i) {
    return static_cast<A>(i);
  }
  template <typename I, typename A>
  static SPARSEDET_INLINE I to_int(A x) {
    return static_cast<I>(x);
  }
};

template <typename Ops, typename A>
SPARSEDET_INLINE A clamp(A x, A least, A most) {
  const A raised = Ops::select(x > least, x, least);
  return Ops::select(raised < most, raised, most);
}

// The two neighbours of a location along one axis. The indices always lie inside of the level, so
// that they may be read whatever the location is; inside_* is 1 for a true neighbour, else 0.
template <typename A, typename I>
struct Neighbours {
  I low, high;
  A weight_low, weight_high;
  A inside_low, inside_high;
};

template <typename Ops, typename A, typename I>
SPARSEDET_INLINE Neighbours<A, I> neighbours(A location, I size) {
  const A zero = A{}, one = zero + 1;
  const A limit = Ops::template to_real<A>(size), last = limit - 1;
  A x = location * limit - one / 2;
  // NaN fails the first comparison; both neighbours of -2 and of size are outside.
  x = Ops::select(x > zero - 2, x, zero - 2);
  x = Ops::select(x < limit, x, limit);
  const A truncated = Ops::template to_real<A>(Ops::template to_int<I>(x));
  const A low = Ops::select(truncated > x, truncated - 1, truncated);
  const A high = low + 1;
  const A fraction = x - low;
  const A low_inside = clamp<Ops>(low, zero, last), high_inside = clamp<Ops>(high, zero, last);
  Neighbours<A, I> n;
  n.low = Ops::template to_int<I>(low_inside);
  n.high = Ops::template to_int<I>(high_inside);
  n.inside_low = Ops::select(low == low_inside, one, zero);
  n.inside_high = Ops::select(high == high_inside, one, zero);
  n.weight_low = n.inside_low * (one - fraction);
  n.weight_high = n.inside_high * fraction;
  return n;
}

// Derivatives of a bilinear sample by x and by y in cells. The corners' contributions are named row
// first: low_high belongs to the lower row and the higher column.
template <typename A, typename I>
SPARSEDET_INLINE A slope_x(const Neighbours<A, I>& x, const Neighbours<A, I>& y, A low_low,
                           A low_high, A high_low, A high_high) {
  return y.weight_low * (x.inside_high * low_high - x.inside_low * low_low) +
         y.weight_high * (x.inside_high * high_high - x.inside_low * high_low);
}

template <typename A, typename I>
SPARSEDET_INLINE A slope_y(const Neighbours<A, I>& x, const Neighbours<A, I>& y, A low_low,
                           A low_high, A high_low, A high_high) {
  return x.weight_low * (y.inside_high * high_low - y.inside_low * low_low) +
         x.weight_high * (y.inside_high * high_high - y.inside_low * low_high);
}

}  // namespace sparsedet
