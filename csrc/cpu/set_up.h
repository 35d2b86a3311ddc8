// Samples: which tokens they read, with which weights, and how that depends on the location.
//
// A location in [0, 1] reads its level at the continuous index location * size - 0.5 (cell
// centres). Along each axis it reads a pair of neighbours: the pair around it, or else the nearest
// that lies in the level. A neighbour at distance d weighs max(0, 1 - |d|): that is bilinear
// sampling in the level, zero padding around it, and nothing where the location is not finite.
// Whatever the location is, all reads are in the level, and there is nothing to branch on.
#pragma once

#include "vector.h"

namespace sparsedet::cpu {
namespace {

// The samples of one query and head, prepared: a register of tokens, those of the samples' first
// corners, then for each corner a register of weights (bilinear weight times attention weight);
// then the next register of samples.
template <typename V>
struct Corners {
  using Real = typename V::Real;
  using Int = typename V::Int;
  Real* memory;

  static SPARSEDET_HOT int64_t place(int64_t sample) {
    return sample + kCorners * (sample & -int64_t{V::kLanes});
  }
  SPARSEDET_HOT Int* token(int64_t place) const { return reinterpret_cast<Int*>(memory) + place; }
  SPARSEDET_HOT Real* weight(int64_t place, int corner) const {
    return memory + place + (1 + corner) * V::kLanes;
  }
};

// Pairs of neighbours along one axis, and the locations' distances from them in cells.
template <typename V>
struct Pairs {
  typename V::Ints first;
  typename V::Reals distance[2], weight[2];

  SPARSEDET_HOT Pairs(typename V::Reals location, const typename V::Real* size,
                      const typename V::Real* last, const typename V::Real* next) {
    const auto zero = V::set(0), one = V::set(1);
    const auto index = V::fma(location, V::load(size), V::set(-0.5f));
    first = V::truncate(V::min(V::max(index, zero), V::load(last)));
    distance[0] = index - V::to_reals(first);
    distance[1] = distance[0] - V::load(next);
    for (int i = 0; i < 2; ++i) weight[i] = V::max(one - V::abs(distance[i]), zero);
  }
};

template <typename V>
struct Locations {
  typename V::Reals x, y;

  SPARSEDET_HOT Locations(const typename V::Real* from, int64_t count) {
    V::load_pairs(from, count, x, y);
  }
};

// A register of samples, from number `first` of `samples` on.
template <typename V>
struct Samples {
  using Real = typename V::Real;
  int64_t count;
  Locations<V> location;
  typename V::Reals weight;
  Pairs<V> x, y;

  SPARSEDET_HOT Samples(const SampleLevels<Real>& levels, int64_t first, int64_t samples,
                        const Real* locations, const Real* weights)
      : count(samples - first < V::kLanes ? samples - first : V::kLanes),
        location(locations + 2 * first, count),
        weight(V::load_some(weights + first, count)),
        x(location.x, levels.width + first, levels.last_column + first, levels.next_column + first),
        y(location.y, levels.height + first, levels.last_row + first, levels.next_row + first) {}
};

template <typename V>
SPARSEDET_HOT void set_up(const SampleLevels<typename V::Real>& levels, int64_t samples,
                          const typename V::Real* locations, const typename V::Real* weights,
                          const Corners<V>& corners) {
  for (int64_t s = 0; s < samples; s += V::kLanes) {
    const Samples<V> sample(levels, s, samples, locations, weights);
    const auto row = V::multiply(sample.y.first, V::load_ints(levels.columns + s));
    const auto token = V::add(V::add(V::load_ints(levels.start + s), row), sample.x.first);
    const int64_t at = Corners<V>::place(s);
    V::store_ints(corners.token(at), token);
    for (int c = 0; c < kCorners; ++c) {
      V::store(corners.weight(at, c),
               sample.weight * sample.y.weight[c / 2] * sample.x.weight[c % 2]);
    }
  }
}

// Backward through set_up. For each sample, sums + kCorners * sample has the sums over the channels
// of a corner's value times the gradient of the output.
template <typename V>
SPARSEDET_HOT void finish(const SampleLevels<typename V::Real>& levels, int64_t samples,
                          const typename V::Real* locations, const typename V::Real* weights,
                          const typename V::Real* sums, typename V::Real* grad_locations,
                          typename V::Real* grad_weights) {
  for (int64_t s = 0; s < samples; s += V::kLanes) {
    const Samples<V> sample(levels, s, samples, locations, weights);
    const Pairs<V>&x = sample.x, &y = sample.y;
    typename V::Reals sum[kCorners];
    V::load_sums(sums + kCorners * s, sum);
    // A row is sampled along x, and its slope along x.
    typename V::Reals row[2], slope[2];
    for (int i = 0; i < 2; ++i) {
      row[i] = x.weight[0] * sum[2 * i] + x.weight[1] * sum[2 * i + 1];
      slope[i] = V::slope_of_hat(x.distance[0]) * sum[2 * i] +
                 V::slope_of_hat(x.distance[1]) * sum[2 * i + 1];
    }
    const auto along_x = y.weight[0] * slope[0] + y.weight[1] * slope[1];
    const auto along_y =
        V::slope_of_hat(y.distance[0]) * row[0] + V::slope_of_hat(y.distance[1]) * row[1];
    V::store_some(grad_weights + s, y.weight[0] * row[0] + y.weight[1] * row[1], sample.count);
    V::store_pairs(grad_locations + 2 * s, sample.weight * V::load(levels.width + s) * along_x,
                   sample.weight * V::load(levels.height + s) * along_y, sample.count);
  }
}

}  // namespace
}  // namespace sparsedet::cpu
