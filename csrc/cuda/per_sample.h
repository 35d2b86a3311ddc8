// What one CUDA thread computes. Also compiles for the host, where the tests run it.
#pragma once

#include <cstdint>

#include "../sampling.h"

namespace sparsedet::cuda {

constexpr int kMostLevels = 64;  // the levels travel in the arguments of the kernel

struct Level {
  int32_t height, width, start;
};

template <typename T, typename A>
struct Inputs {
  int64_t batch, heads, channels, queries, levels, points;
  int64_t image_stride, token_stride, head_stride, channel_stride;  // of value
  const T* value;
  const A* locations;
  const A* weights;
  Level level[kMostLevels];
};

template <typename T, typename A>
struct Gradients {
  const T* output;
  int64_t image_stride, token_stride, head_stride, channel_stride;  // of value
  A* value;
  A* locations;
  A* weights;
};

// Sample number `sample` (level, point) of row number `row` (image, query, head).
template <typename A>
struct Sample {
  Neighbours<A, int32_t> x, y;
  int64_t low_row, high_row;  // tokens at which the two rows of the level begin
  A weight;
  A width, height;

  template <typename T>
  SPARSEDET_INLINE Sample(const Inputs<T, A>& in, int64_t row, int64_t sample) {
    const Level level = in.level[sample / in.points];
    const int64_t i = row * in.levels * in.points + sample;
    x = neighbours<Scalar>(in.locations[2 * i], level.width);
    y = neighbours<Scalar>(in.locations[2 * i + 1], level.height);
    low_row = level.start + static_cast<int64_t>(y.low) * level.width;
    high_row = level.start + static_cast<int64_t>(y.high) * level.width;
    weight = in.weights[i];
    width = static_cast<A>(level.width);
    height = static_cast<A>(level.height);
  }
};

// Element number `index` of the output (image, query, head, channel).
template <typename T, typename A>
SPARSEDET_INLINE A output_element(const Inputs<T, A>& in, int64_t index) {
  const int64_t channel = index % in.channels, row = index / in.channels;
  const int64_t head = row % in.heads, image = row / in.heads / in.queries;
  const T* value =
      in.value + image * in.image_stride + head * in.head_stride + channel * in.channel_stride;
  const int64_t stride = in.token_stride;
  A sum = 0;
  for (int64_t s = 0; s < in.levels * in.points; ++s) {
    const Sample<A> sample(in, row, s);
    const auto &x = sample.x, &y = sample.y;
    const A low = x.weight_low * static_cast<A>(value[(sample.low_row + x.low) * stride]) +
                  x.weight_high * static_cast<A>(value[(sample.low_row + x.high) * stride]);
    const A high = x.weight_low * static_cast<A>(value[(sample.high_row + x.low) * stride]) +
                   x.weight_high * static_cast<A>(value[(sample.high_row + x.high) * stride]);
    sum += sample.weight * (y.weight_low * low + y.weight_high * high);
  }
  return sum;
}

template <typename A>
struct SampleGradient {
  A x, y, weight;
};

// Gradients of one sample from every `step`-th channel on; the caller adds up those of all first
// channels. Adds the gradient of value by `add(address, number)`.
template <typename T, typename A, typename Add>
SPARSEDET_INLINE SampleGradient<A> sample_gradient(const Inputs<T, A>& in,
                                                   const Gradients<T, A>& grads, int64_t row,
                                                   int64_t index, int64_t first, int64_t step,
                                                   const Add& add) {
  const int64_t head = row % in.heads, image = row / in.heads / in.queries;
  const Sample<A> sample(in, row, index);
  const auto &x = sample.x, &y = sample.y;
  const int64_t token[4] = {sample.low_row + x.low, sample.low_row + x.high,
                            sample.high_row + x.low, sample.high_row + x.high};
  const A weight[4] = {y.weight_low * x.weight_low, y.weight_low * x.weight_high,
                       y.weight_high * x.weight_low, y.weight_high * x.weight_high};
  A dot[4] = {};
  for (int64_t d = first; d < in.channels; d += step) {
    const A grad_output = static_cast<A>(grads.output[row * in.channels + d]);
    const T* value =
        in.value + image * in.image_stride + head * in.head_stride + d * in.channel_stride;
    A* grad_value = grads.value + image * grads.image_stride + head * grads.head_stride +
                    d * grads.channel_stride;
    for (int c = 0; c < 4; ++c) {
      dot[c] += grad_output * static_cast<A>(value[token[c] * in.token_stride]);
      if (weight[c] != 0) {
        add(grad_value + token[c] * grads.token_stride, sample.weight * weight[c] * grad_output);
      }
    }
  }
  return {sample.weight * sample.width * slope_x(x, y, dot[0], dot[1], dot[2], dot[3]),
          sample.weight * sample.height * slope_y(x, y, dot[0], dot[1], dot[2], dot[3]),
          weight[0] * dot[0] + weight[1] * dot[1] + weight[2] * dot[2] + weight[3] * dot[3]};
}

}  // namespace sparsedet::cuda
