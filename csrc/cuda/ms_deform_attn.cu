// CUDA kernels of sparsedet::ms_deform_attn and its backward, for torch's stable ABI.
//
// Forward: a thread for each output element. Backward: a warp for each row (image, query, head), a
// channel per lane; only the gradient of value is summed by atomics, in the precision of the sums.

#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "../arguments.h"
#include "per_sample.h"

namespace sparsedet::cuda {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int64_t kMostBlocks = 1 << 30;

template <typename T, typename A>
__global__ void forward_kernel(const __grid_constant__ Inputs<T, A> in, T* output, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    output[i] = static_cast<T>(output_element(in, i));
  }
}

struct AtomicAdd {
  template <typename A>
  __host__ __device__ void operator()(A* to, A number) const {
#if defined(__CUDA_ARCH__)
    atomicAdd(to, number);
#endif
  }
};

template <typename A>
__device__ A sum_of_warp(A number) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    number += __shfl_down_sync(0xffffffff, number, offset);
  }
  return number;
}

template <typename T, typename A>
__global__ void backward_kernel(const __grid_constant__ Inputs<T, A> in,
                                const __grid_constant__ Gradients<T, A> grads, int64_t rows) {
  const int64_t samples = in.levels * in.points;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  const int lane = threadIdx.x % kWarp;
  // All lanes of a warp share the row, so that they leave the loop together.
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
       row < rows; row += step) {
    for (int64_t s = 0; s < samples; ++s) {
      const auto part = sample_gradient(in, grads, row, s, lane, kWarp, AtomicAdd{});
      const A x = sum_of_warp(part.x), y = sum_of_warp(part.y), weight = sum_of_warp(part.weight);
      if (lane == 0) {
        const int64_t i = row * samples + s;
        grads.locations[2 * i] = x;
        grads.locations[2 * i + 1] = y;
        grads.weights[i] = weight;
      }
    }
  }
}

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  const auto status = aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream);
  STD_TORCH_CHECK(status == AOTI_TORCH_SUCCESS, "there is no current CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

inline dim3 blocks_for(int64_t threads) {
  return dim3(static_cast<unsigned>(std::min((threads + kThreads - 1) / kThreads, kMostBlocks)));
}

inline void check_devices(const Tensor& value, const Tensor& locations, const Tensor& weights) {
  STD_TORCH_CHECK(locations.is_cuda() && weights.is_cuda() &&
                      locations.get_device_index() == value.get_device_index() &&
                      weights.get_device_index() == value.get_device_index(),
                  "sampling_locations and attention_weights must be on the device of value");
}

template <typename T, typename A>
Inputs<T, A> inputs(const Tensor& value, const std::vector<int64_t>& spatial_shapes,
                    const Tensor& locations, const Tensor& weights, const Sizes& s) {
  STD_TORCH_CHECK(s.levels <= kMostLevels, "there must be at most 64 levels");
  const Strides strides = strides_of(value);
  Inputs<T, A> in{s.batch,
                  s.heads,
                  s.channels,
                  s.queries,
                  s.levels,
                  s.points,
                  strides.batch,
                  strides.token,
                  strides.head,
                  strides.channel,
                  static_cast<const T*>(value.const_data_ptr()),
                  static_cast<const A*>(locations.const_data_ptr()),
                  static_cast<const A*>(weights.const_data_ptr()),
                  {}};
  int32_t start = 0;
  for (int64_t level = 0; level < s.levels; ++level) {
    const auto height = static_cast<int32_t>(spatial_shapes[2 * level]);
    const auto width = static_cast<int32_t>(spatial_shapes[2 * level + 1]);
    in.level[level] = {height, width, start};
    start += height * width;
  }
  return in;
}

template <typename T, typename A>
void launch_forward(const Inputs<T, A>& in, T* output, int64_t count, cudaStream_t stream) {
  forward_kernel<T, A><<<blocks_for(count), kThreads, 0, stream>>>(in, output, count);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T, typename A>
void launch_backward(const Inputs<T, A>& in, const Gradients<T, A>& grads, int64_t rows,
                     cudaStream_t stream) {
  backward_kernel<T, A><<<blocks_for(rows * kWarp), kThreads, 0, stream>>>(in, grads, rows);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor forward(const Tensor& value, std::vector<int64_t> spatial_shapes, const Tensor& locations_in,
               const Tensor& weights_in, std::optional<Tensor> query_order) {
  const Sizes s = check_arguments(value, spatial_shapes, locations_in, weights_in);
  check_query_order(query_order, s);
  check_devices(value, locations_in, weights_in);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const Tensor locations = torch::stable::contiguous(locations_in);
  const Tensor weights = torch::stable::contiguous(weights_in);
  Tensor output = torch::stable::new_empty(value, {s.batch, s.queries, s.heads * s.channels});
  if (s.empty()) return torch::stable::zero_(output);
  with_types(value, [&](auto* element, auto* real) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = std::remove_pointer_t<decltype(real)>;
    launch_forward<T, A>(inputs<T, A>(value, spatial_shapes, locations, weights, s),
                         static_cast<T*>(output.mutable_data_ptr()), output.numel(),
                         current_stream(value));
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output_in, const Tensor& value,
                                            std::vector<int64_t> spatial_shapes,
                                            const Tensor& locations_in, const Tensor& weights_in,
                                            std::optional<Tensor> query_order,
                                            bool /* deterministic */) {
  const Sizes s = check_arguments(value, spatial_shapes, locations_in, weights_in);
  check_query_order(query_order, s);
  check_devices(value, locations_in, weights_in);
  check_grad_output(grad_output_in, value, s);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const Tensor grad_output = torch::stable::contiguous(grad_output_in);
  const Tensor locations = torch::stable::contiguous(locations_in);
  const Tensor weights = torch::stable::contiguous(weights_in);
  Tensor grad_value = torch::stable::empty_like(value);
  Tensor grad_locations = torch::stable::empty_like(locations);
  Tensor grad_weights = torch::stable::empty_like(weights);
  if (s.empty()) {
    torch::stable::zero_(grad_value);
    torch::stable::zero_(grad_locations);
    torch::stable::zero_(grad_weights);
    return {grad_value, grad_locations, grad_weights};
  }
  // Halves are summed in float32 and rounded once.
  const bool is_sum = value.scalar_type() == locations.scalar_type();
  Tensor sums = is_sum ? torch::stable::zero_(grad_value)
                       : torch::stable::new_zeros(value, value.sizes(), locations.scalar_type());
  with_types(value, [&](auto* element, auto* real) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = std::remove_pointer_t<decltype(real)>;
    const Strides strides = strides_of(sums);
    const Gradients<T, A> grads{static_cast<const T*>(grad_output.const_data_ptr()),
                                strides.batch,
                                strides.token,
                                strides.head,
                                strides.channel,
                                static_cast<A*>(sums.mutable_data_ptr()),
                                static_cast<A*>(grad_locations.mutable_data_ptr()),
                                static_cast<A*>(grad_weights.mutable_data_ptr())};
    launch_backward<T, A>(inputs<T, A>(value, spatial_shapes, locations, weights, s), grads,
                          s.batch * s.queries * s.heads, current_stream(value));
  });
  if (!is_sum) torch::stable::copy_(grad_value, sums);
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace sparsedet::cuda

STABLE_TORCH_LIBRARY_IMPL(sparsedet, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&sparsedet::cuda::forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&sparsedet::cuda::backward));
}
