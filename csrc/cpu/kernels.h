// Loops of the CPU kernels.
//
// Work on one (query, head) has two steps. The samples are set up: token and weight of the four
// corners of each. Then the corners' channels are summed. The set-up takes a sample per lane, the
// sum a channel per lane, and neither branches.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../arguments.h"
#include "../sampling.h"
#include "simd.h"

namespace sparsedet::cpu {

constexpr int kCorners = 4;  // low low, low high, high low, high high: the row first
constexpr int64_t kMostLanes = 16;
constexpr int64_t kQueryBlock = 64;

inline int64_t padded(int64_t samples) {
  return (samples + kMostLanes - 1) / kMostLanes * kMostLanes;
}

// Level of each sample (level, point) of a query and head, padded by levels of one cell.
struct SampleLevels {
  std::vector<int32_t> height, width, start;

  SampleLevels(const std::vector<int64_t>& spatial_shapes, const Sizes& s)
      : height(padded(s.samples()), 1), width(height), start(padded(s.samples()), 0) {
    int64_t first = 0;
    for (int64_t level = 0; level < s.levels; ++level) {
      const int64_t rows = spatial_shapes[2 * level], columns = spatial_shapes[2 * level + 1];
      std::fill_n(height.begin() + level * s.points, s.points, static_cast<int32_t>(rows));
      std::fill_n(width.begin() + level * s.points, s.points, static_cast<int32_t>(columns));
      std::fill_n(start.begin() + level * s.points, s.points, static_cast<int32_t>(first));
      first += rows * columns;
    }
  }
};

// Corner c of sample s of one query and head stands at c * stride + s.
template <typename A>
struct Corners {
  int64_t stride;
  std::vector<int32_t> token;
  std::vector<A> weight;  // bilinear weight times attention weight

  explicit Corners(int64_t samples)
      : stride(padded(samples)), token(kCorners * stride), weight(kCorners * stride) {}
};

template <typename T, typename A>
struct Inputs {
  Sizes sizes;
  Strides strides;  // of value; its channels are adjacent
  SampleLevels levels;
  const T* value;
  const A* locations;
  const A* weights;
};

template <typename T, typename A>
struct Gradients {
  const T* output;
  Strides strides;  // of value
  T* value;
  A* locations;
  A* weights;
};

// One register of samples; lanes from count on have weight zero.
template <typename A, int kBytes>
struct Samples {
  static constexpr int kLanes = Simd<A, kBytes>::kLanes;
  typename Simd<A, kBytes>::Reals x, y, weight;

  SPARSEDET_INLINE Samples(const A* locations, const A* weights, int64_t count) {
    A xs[kLanes] = {}, ys[kLanes] = {}, ws[kLanes] = {};
    if (count >= kLanes) {
      copy(locations, weights, kLanes, xs, ys, ws);
    } else {
      copy(locations, weights, count, xs, ys, ws);
    }
    x = load<kLanes>(xs);
    y = load<kLanes>(ys);
    weight = load<kLanes>(ws);
  }

  static SPARSEDET_INLINE void copy(const A* locations, const A* weights, int64_t count, A* xs,
                                    A* ys, A* ws) {
    for (int64_t i = 0; i < count; ++i) {
      xs[i] = locations[2 * i];
      ys[i] = locations[2 * i + 1];
      ws[i] = weights[i];
    }
  }
};

template <typename S>
SPARSEDET_INLINE typename S::Ints level_data(const std::vector<int32_t>& of_samples,
                                             int64_t first) {
  const auto narrow = load_same<Vector<int32_t, S::kLanes>>(of_samples.data() + first);
  return __builtin_convertvector(narrow, typename S::Ints);
}

template <typename A, int kBytes>
SPARSEDET_INLINE void set_up(const SampleLevels& levels, int64_t samples, const A* locations,
                             const A* weights, Corners<A>& corners) {
  using S = Simd<A, kBytes>;
  using Narrow = Vector<int32_t, S::kLanes>;
  for (int64_t first = 0; first < samples; first += S::kLanes) {
    const Samples<A, kBytes> sample(locations + 2 * first, weights + first, samples - first);
    const auto width = level_data<S>(levels.width, first);
    const auto start = level_data<S>(levels.start, first);
    const auto x = neighbours<Lanes>(sample.x, width);
    const auto y = neighbours<Lanes>(sample.y, level_data<S>(levels.height, first));
    const auto low_row = start + y.low * width, high_row = start + y.high * width;
    const auto low = sample.weight * y.weight_low, high = sample.weight * y.weight_high;
    const typename S::Ints token[kCorners] = {low_row + x.low, low_row + x.high, high_row + x.low,
                                              high_row + x.high};
    const typename S::Reals weight[kCorners] = {low * x.weight_low, low * x.weight_high,
                                                high * x.weight_low, high * x.weight_high};
    for (int c = 0; c < kCorners; ++c) {
      const Narrow narrow = __builtin_convertvector(token[c], Narrow);
      std::memcpy(corners.token.data() + c * corners.stride + first, &narrow, sizeof(narrow));
      std::memcpy(corners.weight.data() + c * corners.stride + first, &weight[c],
                  sizeof(weight[c]));
    }
  }
}

// Sums kVectors vectors of channels. Two sums for each keep the additions apart.
template <int kVectors, int kBytes, typename T, typename A>
SPARSEDET_INLINE void sum_vectors(const T* value, int64_t token_stride, const Corners<A>& corners,
                                  int64_t samples, T* output) {
  constexpr int lanes = Simd<A, kBytes>::kLanes;
  typename Simd<A, kBytes>::Reals sums[2][kVectors] = {};
  for (int64_t s = 0; s < samples; ++s) {
    for (int c = 0; c < kCorners; ++c) {
      const int64_t i = c * corners.stride + s;
      const T* from = value + corners.token[i] * token_stride;
      for (int v = 0; v < kVectors; ++v) {
        sums[c % 2][v] += corners.weight[i] * load<lanes>(from + v * lanes);
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) store(output + v * lanes, sums[0][v] + sums[1][v]);
}

template <int kBytes, typename T, typename A>
SPARSEDET_INLINE void sum_tail(const T* value, int64_t token_stride, const Corners<A>& corners,
                               int64_t samples, int64_t channels, T* output) {
  A sums[Simd<A, kBytes>::kLanes] = {};
  for (int64_t s = 0; s < samples; ++s) {
    for (int c = 0; c < kCorners; ++c) {
      const int64_t i = c * corners.stride + s;
      const T* from = value + corners.token[i] * token_stride;
      for (int64_t d = 0; d < channels; ++d) sums[d] += corners.weight[i] * static_cast<A>(from[d]);
    }
  }
  for (int64_t d = 0; d < channels; ++d) output[d] = static_cast<T>(sums[d]);
}

template <int kBytes, typename T, typename A>
SPARSEDET_INLINE void sum_channels(const T* value, int64_t token_stride, const Corners<A>& corners,
                                   int64_t samples, int64_t channels, T* output) {
  constexpr int lanes = Simd<A, kBytes>::kLanes;
  int64_t d = 0;
  for (; d + 4 * lanes <= channels; d += 4 * lanes) {
    sum_vectors<4, kBytes>(value + d, token_stride, corners, samples, output + d);
  }
  for (; d + 2 * lanes <= channels; d += 2 * lanes) {
    sum_vectors<2, kBytes>(value + d, token_stride, corners, samples, output + d);
  }
  for (; d + lanes <= channels; d += lanes) {
    sum_vectors<1, kBytes>(value + d, token_stride, corners, samples, output + d);
  }
  if (d < channels) {
    sum_tail<kBytes>(value + d, token_stride, corners, samples, channels - d, output + d);
  }
}

inline int64_t query_blocks(const Sizes& s) {
  return (s.queries + kQueryBlock - 1) / kQueryBlock;
}

// Tasks are (image, block of queries, head): neighbouring queries of one head read the same tokens.
template <int kBytes, typename T, typename A>
SPARSEDET_INLINE void forward_tasks(const Inputs<T, A>& in, T* output, int64_t begin, int64_t end) {
  const Sizes& s = in.sizes;
  const int64_t samples = s.samples();
  Corners<A> corners(samples);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t head = task % s.heads;
    const int64_t block = task / s.heads % query_blocks(s);
    const int64_t image = task / s.heads / query_blocks(s);
    const T* value = in.value + image * in.strides.batch + head * in.strides.head;
    const int64_t last = std::min(s.queries, (block + 1) * kQueryBlock);
    for (int64_t query = block * kQueryBlock; query < last; ++query) {
      const int64_t row = (image * s.queries + query) * s.heads + head;
      set_up<A, kBytes>(in.levels, samples, in.locations + 2 * row * samples,
                        in.weights + row * samples, corners);
      sum_channels<kBytes>(value, in.strides.token, corners, samples, s.channels,
                           output + row * s.channels);
    }
  }
}

// Backward through sum_channels: spreads the gradient of the output over the tokens' gradients, and
// adds to dots what each corner would contribute to the output's gradient with weight one.
template <int kVectors, int kBytes, typename T, typename A>
SPARSEDET_INLINE void spread_vectors(const T* value, int64_t token_stride, const A* grad_output,
                                     const Corners<A>& corners, int64_t samples,
                                     int64_t grad_stride, A* grad_value, A* dots) {
  constexpr int lanes = Simd<A, kBytes>::kLanes;
  using Reals = typename Simd<A, kBytes>::Reals;
  Reals grad[kVectors];
  for (int v = 0; v < kVectors; ++v) grad[v] = load<lanes>(grad_output + v * lanes);
  for (int64_t s = 0; s < samples; ++s) {
    for (int c = 0; c < kCorners; ++c) {
      const int64_t i = c * corners.stride + s;
      const T* from = value + corners.token[i] * token_stride;
      A* to = grad_value + corners.token[i] * grad_stride;
      Reals dot = {};
      for (int v = 0; v < kVectors; ++v) {
        dot += grad[v] * load<lanes>(from + v * lanes);
        store(to + v * lanes, load<lanes>(to + v * lanes) + corners.weight[i] * grad[v]);
      }
      dots[i] += sum_of_lanes(dot);
    }
  }
}

template <typename T, typename A>
SPARSEDET_INLINE void spread_tail(const T* value, int64_t token_stride, const A* grad_output,
                                  const Corners<A>& corners, int64_t samples, int64_t channels,
                                  int64_t grad_stride, A* grad_value, A* dots) {
  for (int64_t s = 0; s < samples; ++s) {
    for (int c = 0; c < kCorners; ++c) {
      const int64_t i = c * corners.stride + s;
      const T* from = value + corners.token[i] * token_stride;
      A* to = grad_value + corners.token[i] * grad_stride;
      for (int64_t d = 0; d < channels; ++d) {
        dots[i] += grad_output[d] * static_cast<A>(from[d]);
        to[d] += corners.weight[i] * grad_output[d];
      }
    }
  }
}

template <int kBytes, typename T, typename A>
SPARSEDET_INLINE void spread_channels(const T* value, int64_t token_stride, const A* grad_output,
                                      const Corners<A>& corners, int64_t samples, int64_t channels,
                                      A* grad_value, A* dots) {
  constexpr int lanes = Simd<A, kBytes>::kLanes;
  int64_t d = 0;
  for (; d + 2 * lanes <= channels; d += 2 * lanes) {
    spread_vectors<2, kBytes>(value + d, token_stride, grad_output + d, corners, samples, channels,
                              grad_value + d, dots);
  }
  for (; d + lanes <= channels; d += lanes) {
    spread_vectors<1, kBytes>(value + d, token_stride, grad_output + d, corners, samples, channels,
                              grad_value + d, dots);
  }
  if (d < channels) {
    spread_tail(value + d, token_stride, grad_output + d, corners, samples, channels - d, channels,
                grad_value + d, dots);
  }
}

// Backward through set_up: gradients of locations and weights from the corners' dots.
template <typename A, int kBytes>
SPARSEDET_INLINE void finish(const SampleLevels& levels, int64_t samples, const A* locations,
                             const A* weights, int64_t stride, const A* dots, A* grad_locations,
                             A* grad_weights) {
  using S = Simd<A, kBytes>;
  for (int64_t first = 0; first < samples; first += S::kLanes) {
    const Samples<A, kBytes> sample(locations + 2 * first, weights + first, samples - first);
    const auto width = level_data<S>(levels.width, first);
    const auto height = level_data<S>(levels.height, first);
    const auto x = neighbours<Lanes>(sample.x, width);
    const auto y = neighbours<Lanes>(sample.y, height);
    typename S::Reals dot[kCorners];
    for (int c = 0; c < kCorners; ++c) dot[c] = load<S::kLanes>(dots + c * stride + first);
    const auto grad_weight = y.weight_low * (x.weight_low * dot[0] + x.weight_high * dot[1]) +
                             y.weight_high * (x.weight_low * dot[2] + x.weight_high * dot[3]);
    const auto grad_x = sample.weight * Lanes::to_real<typename S::Reals>(width) *
                        slope_x(x, y, dot[0], dot[1], dot[2], dot[3]);
    const auto grad_y = sample.weight * Lanes::to_real<typename S::Reals>(height) *
                        slope_y(x, y, dot[0], dot[1], dot[2], dot[3]);
    const int64_t count = std::min<int64_t>(samples - first, S::kLanes);
    for (int64_t i = 0; i < count; ++i) {
      grad_weights[first + i] = grad_weight[i];
      grad_locations[2 * (first + i)] = grad_x[i];
      grad_locations[2 * (first + i) + 1] = grad_y[i];
    }
  }
}

// Tasks are (image, head): no two of them write the same number, so that the sums have one order
// whatever the number of threads.
template <int kBytes, typename T, typename A>
SPARSEDET_INLINE void backward_tasks(const Inputs<T, A>& in, const Gradients<T, A>& grads,
                                     int64_t begin, int64_t end) {
  const Sizes& s = in.sizes;
  const int64_t samples = s.samples();
  Corners<A> corners(samples);
  std::vector<A> dots(corners.weight.size()), grad_output(s.channels);
  std::vector<A> grad_value(s.tokens * s.channels);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t head = task % s.heads, image = task / s.heads;
    const T* value = in.value + image * in.strides.batch + head * in.strides.head;
    std::fill(grad_value.begin(), grad_value.end(), A{});
    for (int64_t query = 0; query < s.queries; ++query) {
      const int64_t row = (image * s.queries + query) * s.heads + head;
      const A* locations = in.locations + 2 * row * samples;
      const A* weights = in.weights + row * samples;
      for (int64_t d = 0; d < s.channels; ++d) {
        grad_output[d] = static_cast<A>(grads.output[row * s.channels + d]);
      }
      std::fill(dots.begin(), dots.end(), A{});
      set_up<A, kBytes>(in.levels, samples, locations, weights, corners);
      spread_channels<kBytes>(value, in.strides.token, grad_output.data(), corners, samples,
                              s.channels, grad_value.data(), dots.data());
      finish<A, kBytes>(in.levels, samples, locations, weights, corners.stride, dots.data(),
                        grads.locations + 2 * row * samples, grads.weights + row * samples);
    }
    T* to = grads.value + image * grads.strides.batch + head * grads.strides.head;
    for (int64_t token = 0; token < s.tokens; ++token) {
      for (int64_t d = 0; d < s.channels; ++d) {
        to[token * grads.strides.token + d * grads.strides.channel] =
            static_cast<T>(grad_value[token * s.channels + d]);
      }
    }
  }
}

}  // namespace sparsedet::cpu
