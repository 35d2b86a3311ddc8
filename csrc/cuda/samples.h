// Arguments of the kernels, and one sample in the form in which threads exchange it. Also compiles
// for the host, where the tests run it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../inline.h"
#include "tiles.h"

namespace sparsedet::cuda {

constexpr int kLanes = 8;  // threads that work on one row (image, query, head)

template <typename T, typename A>
struct Inputs {
  int64_t image_stride, token_stride, head_stride, channel_stride;  // of value
  const T* value;
  const A* locations;
  const A* weights;
  const int64_t* order;  // of the queries, or null
  int32_t batch, heads, channels, queries, levels, points;
  Tiling tiling;
  Level level[kMostLevels];

  SPARSEDET_INLINE int32_t samples() const { return levels * points; }

  SPARSEDET_INLINE Tile tile(int32_t index) const {
    return tile_of(tiling, level, levels, queries, index);
  }

  // Place in an order of the queries -> query; a wrong order must not lead out of bounds.
  SPARSEDET_INLINE int32_t query(int32_t image, int32_t place) const {
    if (order == nullptr) return place;
    const int64_t query = order[static_cast<int64_t>(image) * queries + place];
    return query < 0 || query >= queries ? 0 : static_cast<int32_t>(query);
  }

  SPARSEDET_INLINE int64_t row(int32_t image, int32_t query, int32_t head) const {
    return (static_cast<int64_t>(image) * queries + query) * heads + head;
  }
};

// One axis of a sample. Cells `base` and the one after it are read, both inside of the level
// whatever the location is, with weights share * (1 - upper) and share * upper. By cells, the
// sample rises by slope_low * (cell at base) + slope_high * (cell after it).
template <typename A>
struct Axis {
  int32_t base;
  A share, upper, slope_low, slope_high;
};

template <typename A>
SPARSEDET_INLINE Axis<A> axis_of(A location, int32_t size) {
  const A limit = static_cast<A>(size);
  A x = location * limit - A{0.5};
  // NaN fails the first comparison; both neighbours of -2 and of size are outside.
  x = x > A{-2} ? x : A{-2};
  x = x < limit ? x : limit;
  const A floor = std::floor(x), fraction = x - floor;
  const int32_t low = static_cast<int32_t>(floor);
  const bool has_low = low >= 0 && low < size, has_high = low >= -1 && low < size - 1;
  const bool both = has_low && has_high;
  const int32_t inside = low < size - 2 ? low : size - 2;
  // With one neighbour inside, the lower one is the last cell and the higher one the first.
  Axis<A> axis;
  axis.base = inside > 0 ? inside : 0;
  axis.share = both ? A{1} : (has_low ? 1 - fraction : (has_high ? fraction : A{0}));
  axis.upper = both ? fraction : (has_low ? A{1} : A{0});
  axis.slope_low = both ? A{-1} : (has_high ? A{1} : A{0});
  axis.slope_high = both ? A{1} : (has_low ? A{-1} : A{0});
  return axis;
}

// Four corners: the tokens `token` and its neighbours by the steps of the level, the weight split
// by x and y.
template <typename A>
struct alignas(4 * sizeof(A)) Sample {
  int32_t token;
  A weight, x, y;
};

// The address `token` strides of bytes after another.
SPARSEDET_INLINE const char* address_of(const char* base, int32_t token, int64_t stride) {
  return base + token * stride;
}

SPARSEDET_INLINE const char* address_of(const char* base, int32_t token, uint32_t stride) {
#if defined(__CUDA_ARCH__)
  // One instruction; the compiler would widen the stride first and multiply 64 bits.
  const char* address;
  asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(address) : "r"(token), "r"(stride), "l"(base));
  return address;
#else
  return address_of(base, token, static_cast<int64_t>(stride));
#endif
}

// kVector adjacent elements, read and written at once; they are aligned to their size.
template <typename T, int kVector>
struct Vector {
  T element[kVector];
};

template <typename T, int kVector>
SPARSEDET_INLINE Vector<T, kVector> load_vector(const T* from) {
  Vector<T, kVector> vector;
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) * kVector == sizeof(uint4)) {
    const uint4 bits = __ldg(reinterpret_cast<const uint4*>(from));
    memcpy(&vector, &bits, sizeof(bits));
    return vector;
  } else if constexpr (sizeof(T) * kVector == sizeof(uint2)) {
    const uint2 bits = __ldg(reinterpret_cast<const uint2*>(from));
    memcpy(&vector, &bits, sizeof(bits));
    return vector;
  }
#endif
  // Element by element: single halves lost their low byte in a memcpy on the device.
  for (int v = 0; v < kVector; ++v) vector.element[v] = from[v];
  return vector;
}

template <typename T, typename A, int kVector>
SPARSEDET_INLINE void store_vector(T* to, const A (&numbers)[kVector]) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) * kVector == sizeof(uint4)) {
    Vector<T, kVector> vector;
    for (int v = 0; v < kVector; ++v) vector.element[v] = static_cast<T>(numbers[v]);
    uint4 bits;
    memcpy(&bits, &vector, sizeof(bits));
    *reinterpret_cast<uint4*>(to) = bits;
    return;
  }
#endif
  for (int v = 0; v < kVector; ++v) to[v] = static_cast<T>(numbers[v]);
}

template <typename A>
struct RawSample {
  A x, y, weight;
};

template <typename T, typename A>
SPARSEDET_INLINE RawSample<A> raw_sample(const Inputs<T, A>& in, int64_t row, int32_t sample) {
  if (sample >= in.samples()) return {0, 0, 0};
  const int64_t i = row * in.samples() + sample;
  const auto location = load_vector<A, 2>(in.locations + 2 * i);
  return {location.element[0], location.element[1], in.weights[i]};
}

template <typename A>
struct PlacedSample {
  Axis<A> x, y;
  Sample<A> sample;

  SPARSEDET_INLINE PlacedSample(const RawSample<A>& raw, const Level& level)
      : x(axis_of(raw.x, level.width)), y(axis_of(raw.y, level.height)) {
    sample = {level.start + y.base * level.width + x.base, raw.weight * (x.share * y.share),
              x.upper, y.upper};
  }

  // Gradients of location and weight from the dot products of the output's gradient with the four
  // corners, the row first.
  SPARSEDET_INLINE RawSample<A> gradient(const RawSample<A>& raw, const Level& level,
                                         const A (&dot)[4]) const {
    const A y_low = 1 - y.upper, x_low = 1 - x.upper;
    const A left = y_low * dot[0] + y.upper * dot[2], right = y_low * dot[1] + y.upper * dot[3];
    const A above = x_low * dot[0] + x.upper * dot[1], below = x_low * dot[2] + x.upper * dot[3];
    return {raw.weight * static_cast<A>(level.width) * y.share *
                (x.slope_low * left + x.slope_high * right),
            raw.weight * static_cast<A>(level.height) * x.share *
                (y.slope_low * above + y.slope_high * below),
            x.share * y.share * (x_low * left + x.upper * right)};
  }
};

}  // namespace sparsedet::cuda
