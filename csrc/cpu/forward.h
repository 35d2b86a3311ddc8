// The forward: channels of the corners, weighted and summed.
#pragma once

#include "set_up.h"

namespace sparsedet::cpu {
namespace {

constexpr int64_t kLine = 64;  // bytes of a cache line

// Steps from a corner to its neighbours, in elements.
struct Steps {
  int64_t column, row;

  SPARSEDET_HOT Steps(const Level& level, int64_t token_stride)
      : column(level.column_step * token_stride), row(level.row_step * token_stride) {}
  SPARSEDET_HOT int64_t to(int corner) const {
    return (corner / 2 ? row : 0) + (corner % 2 ? column : 0);
  }
};

// Prefetches the corners of a sample, the first two cache lines of each; the processor predicts the
// others.
template <int kBytes, typename T>
SPARSEDET_HOT void fetch(const T* value, const Steps& steps) {
  for (int c = 0; c < kCorners; ++c) {
    const char* corner = reinterpret_cast<const char*>(value + steps.to(c));
    __builtin_prefetch(corner);
    if (kBytes > kLine) __builtin_prefetch(corner + kLine);
  }
}

// Sums over corners of kRegisters registers of channels; only `tail` channels of the last one if
// kTail is set. If there are enough registers, each corner has its own sums, so that few additions
// depend on each other.
template <typename V, int kRegisters, bool kTail>
struct Sums {
  static constexpr int kSets = kRegisters <= 2 ? 4 : kRegisters <= 4 ? 2 : 1;
  static constexpr int kWhole = kRegisters - (kTail ? 1 : 0);
  typename V::Reals sums[kSets][kRegisters];
  int64_t tail;

  explicit SPARSEDET_HOT Sums(int64_t tail) : tail(tail) {
    for (auto& set : sums) {
      for (auto& sum : set) sum = V::set(0);
    }
  }

  template <typename T>
  SPARSEDET_HOT void add(const T* value, const Steps& steps, const Corners<V>& corners,
                         int64_t place) {
    for (int c = 0; c < kCorners; ++c) {
      const auto weight = V::set(*corners.weight(place, c));
      const T* corner = value + steps.to(c);
      auto& set = sums[c % kSets];
      for (int r = 0; r < kWhole; ++r) {
        set[r] = V::fma(weight, V::load(corner + r * V::kLanes), set[r]);
      }
      if (kTail) {
        set[kWhole] = V::fma(weight, V::load_some(corner + kWhole * V::kLanes, tail), set[kWhole]);
      }
    }
  }

  template <typename T>
  SPARSEDET_HOT void store(T* output) {
    for (int i = 1; i < kSets; ++i) {
      for (int r = 0; r < kRegisters; ++r) sums[0][r] = sums[0][r] + sums[i][r];
    }
    for (int r = 0; r < kWhole; ++r) V::store(output + r * V::kLanes, sums[0][r]);
    if (kTail) V::store_some(output + kWhole * V::kLanes, sums[0][kWhole], tail);
  }
};

// Not inlined, so that the loop has all the processor's registers. Meanwhile it fetches the corners
// of the next query.
template <typename V, int kRegisters, bool kTail, typename T>
__attribute__((noinline)) void sum_registers(const Inputs<T, typename V::Real>& in, const T* value,
                                             Corners<V> corners, Corners<V> next, int64_t tail,
                                             T* output) {
  Sums<V, kRegisters, kTail> sums(tail);
  const int64_t token_stride = in.strides.token, points = in.sizes.points;
  const int64_t samples = in.sizes.samples();
  const Level* level = in.levels;
  for (int64_t s = 0; s < samples; ++level) {
    const Steps steps(*level, token_stride);
    for (const int64_t end = s + points; s < end; ++s) {
      const int64_t place = Corners<V>::place(s);
      sums.add(value + *corners.token(place) * token_stride, steps, corners, place);
      fetch<kRegisters * V::kLanes * sizeof(T)>(value + *next.token(place) * token_stride, steps);
    }
  }
  sums.store(output);
}

template <typename V, typename T>
SPARSEDET_HOT void sum_channels(const Inputs<T, typename V::Real>& in, const T* value,
                                const Corners<V>& corners, const Corners<V>& next, T* output) {
  constexpr int kMost = V::kMostRegisters, kLanes = V::kLanes;
  const int64_t channels = in.sizes.channels;
  int64_t d = 0;
  for (; d + kMost * kLanes <= channels; d += kMost * kLanes) {
    sum_registers<V, kMost, false>(in, value + d, corners, next, 0, output + d);
  }
  for (; d + 4 * kLanes <= channels; d += 4 * kLanes) {
    sum_registers<V, 4, false>(in, value + d, corners, next, 0, output + d);
  }
  for (; d + 2 * kLanes <= channels; d += 2 * kLanes) {
    sum_registers<V, 2, false>(in, value + d, corners, next, 0, output + d);
  }
  const int64_t rest = channels - d;
  if (rest > kLanes) {
    sum_registers<V, 2, true>(in, value + d, corners, next, rest - kLanes, output + d);
  } else if (rest > 0) {
    sum_registers<V, 1, true>(in, value + d, corners, next, rest, output + d);
  }
}

// Queries [first, last) of an image and head, in processing order.
template <typename V, typename T>
struct Queries {
  using Real = typename V::Real;
  const Inputs<T, Real>& in;
  int64_t image, head, first, last;

  // Number of the (image, query, head).
  SPARSEDET_HOT int64_t row(int64_t position) const {
    const int64_t base = image * in.sizes.queries;
    const int64_t query = in.order ? in.order[base + position] : position;
    return (base + query) * in.sizes.heads + head;
  }
  SPARSEDET_HOT const T* value() const {
    return in.value + image * in.strides.batch + head * in.strides.head;
  }
  // Prepares a query, and prefetches what the preparation of a later query needs.
  SPARSEDET_HOT void prepare(int64_t position, const Corners<V>& corners) const {
    constexpr int64_t kAhead = 3;
    const int64_t samples = in.sizes.samples(), now = row(position) * samples;
    const int64_t soon = row(position + kAhead < last ? position + kAhead : position) * samples;
    __builtin_prefetch(in.locations + 2 * soon);
    __builtin_prefetch(reinterpret_cast<const char*>(in.locations + 2 * soon) + kLine);
    __builtin_prefetch(in.weights + soon);
    set_up<V>(in.sample_levels, samples, in.locations + 2 * now, in.weights + now, corners);
  }
};

// Tasks are (image, head, block of queries): a thread goes through the tokens of a head as the
// queries do. Heads that read the same tokens take turns block by block instead.
template <typename V, typename T>
void forward_tasks(const Inputs<T, typename V::Real>& in, T* output, typename V::Real* work,
                   int64_t begin, int64_t end) {
  const Sizes& s = in.sizes;
  const int64_t blocks = (s.queries + in.block - 1) / in.block;
  const Corners<V> corners[2] = {{work}, {work + in.corners_size}};
  const bool heads_take_turns = in.strides.head == 0;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / (s.heads * blocks), rest = task % (s.heads * blocks);
    const int64_t head = heads_take_turns ? rest % s.heads : rest / blocks;
    const int64_t first = (heads_take_turns ? rest / s.heads : rest % blocks) * in.block;
    const int64_t last = first + in.block < s.queries ? first + in.block : s.queries;
    const Queries<V, T> queries{in, image, head, first, last};
    queries.prepare(first, corners[first % 2]);
    for (int64_t i = first; i < last; ++i) {
      const bool more = i + 1 < last;
      if (more) queries.prepare(i + 1, corners[(i + 1) % 2]);
      sum_channels<V>(in, queries.value(), corners[i % 2], corners[(i + more) % 2],
                      output + queries.row(i) * s.channels);
    }
  }
}

}  // namespace
}  // namespace sparsedet::cpu
