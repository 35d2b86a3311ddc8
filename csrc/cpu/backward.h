// The backward: each output's gradient goes to the corners that it was summed from.
#pragma once

#include "forward.h"

namespace sparsedet::cpu {
namespace {

// The gradient of some channels of an output, kept in registers (see Sums).
template <typename V, int kRegisters, bool kTail>
struct OutputGradient {
  using Reals = typename V::Reals;
  static constexpr int kWhole = kRegisters - (kTail ? 1 : 0);
  Reals grad[kRegisters];
  int64_t tail;

  template <typename T>
  SPARSEDET_HOT OutputGradient(const T* from, int64_t tail) : tail(tail) {
    for (int r = 0; r < kWhole; ++r) grad[r] = V::load(from + r * V::kLanes);
    if (kTail) grad[kWhole] = V::load_some(from + kWhole * V::kLanes, tail);
  }

  // Its product with a corner, lane by lane.
  template <typename T>
  SPARSEDET_HOT Reals times(const T* value) const {
    Reals sum = V::set(0);
    for (int r = 0; r < kWhole; ++r) sum = V::fma(grad[r], V::load(value + r * V::kLanes), sum);
    if (kTail) sum = V::fma(grad[kWhole], V::load_some(value + kWhole * V::kLanes, tail), sum);
    return sum;
  }

  SPARSEDET_HOT void add_to(typename V::Real* to, Reals weight) const {
    for (int r = 0; r < kWhole; ++r) {
      V::store(to + r * V::kLanes, V::fma(weight, grad[r], V::load(to + r * V::kLanes)));
    }
    if (kTail) {
      typename V::Real* last = to + kWhole * V::kLanes;
      V::store_some(last, V::fma(weight, grad[kWhole], V::load_some(last, tail)), tail);
    }
  }
};

// What one task of the backward works on: some levels of an image and head.
template <typename V, typename T>
struct Part {
  using Real = typename V::Real;
  const Inputs<T, Real>& in;
  int64_t first_level, levels;
  const T* value;
  Real* grad_value;

  SPARSEDET_HOT int64_t first_sample() const { return first_level * in.sizes.points; }
  SPARSEDET_HOT int64_t samples() const { return levels * in.sizes.points; }
};

// Adds to the gradients of the corners, and writes or adds to the sums that finish() needs. Fetches
// the corners of the next query meanwhile.
template <typename V, int kRegisters, bool kTail, typename T>
__attribute__((noinline)) void spread_registers(const Part<V, T>& part, int64_t channel,
                                                const T* grad_output, Corners<V> corners,
                                                Corners<V> next, int64_t tail,
                                                typename V::Real* sums) {
  using Real = typename V::Real;
  constexpr int64_t kBytes = kRegisters * V::kLanes * sizeof(T);
  constexpr int64_t kGradBytes = kRegisters * V::kLanes * sizeof(Real);
  const OutputGradient<V, kRegisters, kTail> grad(grad_output + channel, tail);
  const int64_t stride = part.in.strides.token, grad_stride = part.in.sizes.channels;
  const int64_t points = part.in.sizes.points, samples = part.samples();
  const T* value = part.value + channel;
  Real* grad_value = part.grad_value + channel;
  const Level* level = part.in.levels + part.first_level;
  for (int64_t s = 0; s < samples; ++level) {
    const Steps steps(*level, stride), grad_steps(*level, grad_stride);
    for (const int64_t end = s + points; s < end; ++s) {
      const int64_t place = Corners<V>::place(s), token = *corners.token(place);
      typename V::Reals products[kCorners];
      for (int c = 0; c < kCorners; ++c) {
        products[c] = grad.times(value + token * stride + steps.to(c));
        grad.add_to(grad_value + token * grad_stride + grad_steps.to(c),
                    V::set(*corners.weight(place, c)));
      }
      Real* to = sums + kCorners * s;
      if (channel == 0) {
        V::store_sums(to, products);
      } else {
        Real more[kCorners];
        V::store_sums(more, products);
        for (int c = 0; c < kCorners; ++c) to[c] += more[c];
      }
      fetch<kBytes>(value + *next.token(place) * stride, steps);
      fetch<kGradBytes>(grad_value + *next.token(place) * grad_stride, grad_steps);
    }
  }
}

template <typename V, typename T>
SPARSEDET_HOT void spread_channels(const Part<V, T>& part, const T* grad_output,
                                   const Corners<V>& corners, const Corners<V>& next,
                                   typename V::Real* sums) {
  constexpr int kLanes = V::kLanes;
  const int64_t channels = part.in.sizes.channels;
  int64_t d = 0;
  for (; d + 4 * kLanes <= channels; d += 4 * kLanes) {
    spread_registers<V, 4, false>(part, d, grad_output, corners, next, 0, sums);
  }
  for (; d + 2 * kLanes <= channels; d += 2 * kLanes) {
    spread_registers<V, 2, false>(part, d, grad_output, corners, next, 0, sums);
  }
  const int64_t rest = channels - d;
  if (rest > kLanes) {
    spread_registers<V, 2, true>(part, d, grad_output, corners, next, rest - kLanes, sums);
  } else if (rest > 0) {
    spread_registers<V, 1, true>(part, d, grad_output, corners, next, rest, sums);
  }
}

template <typename A>
SPARSEDET_HOT SampleLevels<A> from_sample(const SampleLevels<A>& l, int64_t first) {
  return {l.width + first,       l.height + first,   l.last_column + first, l.last_row + first,
          l.next_column + first, l.next_row + first, l.columns + first,     l.start + first};
}

template <typename V, typename T>
SPARSEDET_HOT void spread_queries(const Part<V, T>& part, const Queries<V, T>& queries,
                                  const Gradients<T, typename V::Real>& grads,
                                  const Corners<V> (&corners)[2], typename V::Real* sums) {
  const Inputs<T, typename V::Real>& in = part.in;
  const int64_t samples = part.samples(), first = part.first_sample();
  const auto levels = from_sample(in.sample_levels, first);
  const auto sample = [&](int64_t row) { return row * in.sizes.samples() + first; };
  const auto prepare = [&](int64_t position) {
    const int64_t s = sample(queries.row(position));
    set_up<V>(levels, samples, in.locations + 2 * s, in.weights + s, corners[position % 2]);
  };
  prepare(0);
  for (int64_t i = 0; i < in.sizes.queries; ++i) {
    const bool more = i + 1 < in.sizes.queries;
    if (more) prepare(i + 1);
    const int64_t row = queries.row(i), s = sample(row);
    spread_channels<V>(part, grads.output + row * in.sizes.channels, corners[i % 2],
                       corners[(i + more) % 2], sums);
    finish<V>(levels, samples, in.locations + 2 * s, in.weights + s, sums, grads.locations + 2 * s,
              grads.weights + s);
  }
}

// Tasks are (image, head, level or all levels). No two of them write the same number, and each adds
// up in the order of the queries: the sums do not depend on the number of threads.
template <typename V, typename T>
void backward_tasks(const Inputs<T, typename V::Real>& in,
                    const Gradients<T, typename V::Real>& grads, typename V::Real* work,
                    int64_t begin, int64_t end) {
  using Real = typename V::Real;
  const Sizes& s = in.sizes;
  const Corners<V> corners[2] = {{work}, {work + in.corners_size}};
  Real* sums = work + 2 * in.corners_size;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t head = task / grads.parts % s.heads, image = task / grads.parts / s.heads;
    const int64_t levels = s.levels / grads.parts, first = task % grads.parts * levels;
    const Queries<V, T> queries{in, image, head, 0, s.queries};
    Real* grad_value = grads.value + (image * s.heads + head) * s.tokens * s.channels;
    const Part<V, T> part{in, first, levels, queries.value(), grad_value};
    const Level &low = in.levels[first], &high = in.levels[first + levels - 1];
    std::memset(grad_value + low.start * s.channels, 0,
                (high.start + high.tokens - low.start) * s.channels * sizeof(Real));
    spread_queries<V>(part, queries, grads, corners, sums);
  }
}

}  // namespace
}  // namespace sparsedet::cpu
