// Runs what the CUDA threads compute on the host, one thread after the other.

#include <cstdint>

#include "../../csrc/cuda/per_sample.h"

namespace sparsedet::cuda {

struct Add {
  template <typename A>
  void operator()(A* to, A number) const {
    *to += number;
  }
};

// sizes: batch, heads, channels, queries, levels, points; strides: image, token, head, channel.
template <typename A>
void run(const int64_t* sizes, const int64_t* strides, const int32_t* levels, const A* value,
         const A* locations, const A* weights, A* output, const A* grad_output, A* grad_value,
         A* grad_locations, A* grad_weights) {
  Inputs<A, A> in{sizes[0],   sizes[1],   sizes[2],   sizes[3], sizes[4],  sizes[5], strides[0],
                  strides[1], strides[2], strides[3], value,    locations, weights,  {}};
  for (int64_t i = 0; i < sizes[4]; ++i) {
    in.level[i] = {levels[3 * i], levels[3 * i + 1], levels[3 * i + 2]};
  }
  const int64_t rows = in.batch * in.queries * in.heads;
  for (int64_t i = 0; i < rows * in.channels; ++i) output[i] = output_element(in, i);
  const Gradients<A, A> grads{grad_output, strides[0], strides[1],     strides[2],
                              strides[3],  grad_value, grad_locations, grad_weights};
  constexpr int lanes = 32;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t s = 0; s < in.levels * in.points; ++s) {
      const int64_t i = row * in.levels * in.points + s;
      for (int lane = 0; lane < lanes; ++lane) {
        const auto part = sample_gradient(in, grads, row, s, lane, lanes, Add{});
        grad_locations[2 * i] += part.x;
        grad_locations[2 * i + 1] += part.y;
        grad_weights[i] += part.weight;
      }
    }
  }
}

}  // namespace sparsedet::cuda

#define SPARSEDET_EXPORT(name, A)                                                                 \
  extern "C" void name(const int64_t* sizes, const int64_t* strides, const int32_t* levels,       \
                       const A* value, const A* locations, const A* weights, A* output,           \
                       const A* grad_output, A* grad_value, A* grad_locations, A* grad_weights) { \
    sparsedet::cuda::run(sizes, strides, levels, value, locations, weights, output, grad_output,  \
                         grad_value, grad_locations, grad_weights);                               \
  }
SPARSEDET_EXPORT(run_float, float)
SPARSEDET_EXPORT(run_double, double)
