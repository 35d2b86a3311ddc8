// CUDA kernels of sparsedet::ms_deform_attn and its backward, for torch's stable ABI.

#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "../arguments.h"
#include "kernels.cuh"

namespace sparsedet::cuda {

constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
constexpr int64_t kMostBlocksInY = 65535;
constexpr int64_t kVectorBytes = 16;
constexpr int kElementThreads = 256;  // of kernels that go through all elements
constexpr int64_t kElementBlocks = 1024;

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  const auto status = aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream);
  STD_TORCH_CHECK(status == AOTI_TORCH_SUCCESS, "there is no current CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

inline bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kVectorBytes == 0;
}

// Contiguous, and aligned to the size of a vector if the kernels read whole vectors.
inline Tensor packed(const Tensor& tensor) {
  const Tensor contiguous = torch::stable::contiguous(tensor);
  return is_aligned(contiguous) ? contiguous : torch::stable::clone(contiguous);
}

inline void check_devices(const Tensor& value, const Tensor& other, const char* message) {
  STD_TORCH_CHECK(other.is_cuda() && other.get_device_index() == value.get_device_index(), message);
}

// Arguments that passed the checks, in the form that the kernels read.
struct Arguments {
  Sizes sizes;
  Tensor value, locations, weights;
  std::optional<Tensor> order;
  std::vector<int64_t> spatial_shapes;

  Arguments(const Tensor& value_in, const std::vector<int64_t>& shapes, const Tensor& locations_in,
            const Tensor& weights_in, const std::optional<Tensor>& order_in)
      : sizes(check_arguments(value_in, shapes, locations_in, weights_in)),
        value(value_in),
        locations(packed(locations_in)),
        weights(packed(weights_in)),
        spatial_shapes(shapes) {
    check_query_order(order_in, sizes);
    const char* message = "all arguments must be on the device of value";
    check_devices(value, locations, message);
    check_devices(value, weights, message);
    if (order_in) {
      check_devices(value, *order_in, message);
      order = torch::stable::contiguous(*order_in);
    }
    STD_TORCH_CHECK(sizes.levels <= kMostLevels, "there must be at most 64 levels");
    // Far below their limit, so that rounding up to whole tiles and chunks does not exceed it.
    for (const int64_t size :
         {sizes.batch, sizes.queries, sizes.heads, sizes.channels, sizes.samples()}) {
      STD_TORCH_CHECK(size <= kMost / 2, "an axis must be shorter than 2^30");
    }
  }

  template <typename T, typename A>
  Inputs<T, A> inputs() const {
    const Strides strides = strides_of(value);
    Inputs<T, A> in{strides.batch,
                    strides.token,
                    strides.head,
                    strides.channel,
                    static_cast<const T*>(value.const_data_ptr()),
                    static_cast<const A*>(locations.const_data_ptr()),
                    static_cast<const A*>(weights.const_data_ptr()),
                    order ? static_cast<const int64_t*>(order->const_data_ptr()) : nullptr,
                    static_cast<int32_t>(sizes.batch),
                    static_cast<int32_t>(sizes.heads),
                    static_cast<int32_t>(sizes.channels),
                    static_cast<int32_t>(sizes.queries),
                    static_cast<int32_t>(sizes.levels),
                    static_cast<int32_t>(sizes.points),
                    {},
                    {}};
    const int32_t tiles = lay_out_levels(spatial_shapes.data(), in.levels, in.level);
    in.tiling = tiling_of(in.queries, tiles, !order && sizes.queries == sizes.tokens,
                          sizes.batch * sizes.heads);
    return in;
  }

  dim3 grid(const Tiling& tiling, int64_t chunks = 1) const {
    const int64_t blocks = tiling.count * sizes.heads * sizes.batch;
    STD_TORCH_CHECK(blocks <= kMost && chunks <= kMostBlocksInY,
                    "there are too many images, queries, heads or points");
    return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(chunks));
  }
};

// Whether vectors of `size` elements of this many bytes can be read along the channels.
inline bool has_vectors(const Tensor& tensor, int64_t channels, int64_t size, int64_t bytes) {
  const Strides s = strides_of(tensor);
  const bool whole = channels % size == 0 && s.batch % size == 0 && s.token % size == 0 &&
                     s.head % size == 0 && is_aligned(tensor);
  return (s.channel == 1 || channels == 1) && whole && s.token * bytes <= kMost;
}

// Calls run with the fastest kind of gathering that fits the arguments.
template <typename T, typename A, typename Run>
void with_gather(const Arguments& arguments, const Run& run) {
  constexpr int vector = kVectorBytes / sizeof(T);
  constexpr int points = 4;  // as nearly all models have
  const int64_t channels = arguments.sizes.channels;
  if constexpr (sizeof(T) < sizeof(double)) {
    if (has_vectors(arguments.value, channels, vector, sizeof(T))) {
      const bool is_usual = arguments.sizes.points == points;
      if (channels <= vector * kLanes / 2) {
        if (is_usual) return run(Gather<T, A, vector, 2, points>{});
        return run(Gather<T, A, vector, 2, 0>{});
      }
      if (is_usual) return run(Gather<T, A, vector, 1, points>{});
      return run(Gather<T, A, vector, 1, 0>{});
    }
  }
  run(Gather<T, A, 1, 1, 0>{});
}

template <typename G>
void launch_forward(const Arguments& arguments, Tensor& output) {
  using T = typename G::T;
  const auto in = arguments.inputs<T, typename G::A>();
  T* to = static_cast<T*>(output.mutable_data_ptr());
  forward_kernel<G>
      <<<arguments.grid(in.tiling), kGatherThreads, 0, current_stream(output)>>>(in, to);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename G>
void launch_locations(const Arguments& arguments, const Tensor& grad_output, Tensor& grad_locations,
                      Tensor& grad_weights) {
  using T = typename G::T;
  using A = typename G::A;
  const auto in = arguments.inputs<T, A>();
  const dim3 grid = arguments.grid(in.tiling);
  location_kernel<G><<<grid, kGatherThreads, 0, current_stream(grad_output)>>>(
      in, static_cast<const T*>(grad_output.const_data_ptr()),
      static_cast<A*>(grad_locations.mutable_data_ptr()),
      static_cast<A*>(grad_weights.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T, typename A, typename Sum>
void launch_value(const Arguments& arguments, const Tensor& grad_output,
                  const ValueGradient<A, Sum>& to) {
  const auto in = arguments.inputs<T, A>();
  const int64_t chunks = (in.samples() + kScatterSamples - 1) / kScatterSamples;
  const dim3 grid = arguments.grid(in.tiling, chunks);
  value_kernel<T, A, Sum><<<grid, kScatterThreads, 0, current_stream(grad_output)>>>(
      in, static_cast<const T*>(grad_output.const_data_ptr()), to);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

inline unsigned element_blocks(int64_t count) {
  return static_cast<unsigned>(
      std::min((count + kElementThreads - 1) / kElementThreads, kElementBlocks));
}

template <typename T, typename A>
void launch_bound(const Tensor& numbers, A* bound) {
  const int64_t count = numbers.numel();
  const auto* from = static_cast<const T*>(numbers.const_data_ptr());
  bound_kernel<<<element_blocks(count), kElementThreads, 0, current_stream(numbers)>>>(from, count,
                                                                                       bound);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T, typename A, typename Sum>
void launch_rounding(const ValueGradient<A, Sum>& from, Tensor& grad_value) {
  const int64_t count = grad_value.numel();
  T* to = static_cast<T*>(grad_value.mutable_data_ptr());
  round_kernel<<<element_blocks(count), kElementThreads, 0, current_stream(grad_value)>>>(
      from.sums, count, from.bounds, from.bits, to);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// The sums have the memory layout of the gradient, which has no gaps.
template <typename A, typename Sum>
ValueGradient<A, Sum> value_gradient(const Tensor& grad_value, Tensor& sums) {
  const Strides s = strides_of(grad_value);
  constexpr int64_t vector = kVectorBytes / sizeof(A);
  const bool is_vector = s.channel == 1 && s.batch % vector == 0 && s.token % vector == 0 &&
                         s.head % vector == 0 && is_aligned(sums);
  auto* to = static_cast<Sum*>(sums.mutable_data_ptr());
  return {s.batch, s.token, s.head, s.channel, to, is_vector, nullptr, 0};
}

template <typename T, typename A>
void value_by_floats(const Arguments& arguments, const Tensor& grad_output, Tensor& grad_value) {
  constexpr bool is_sum = std::is_same_v<T, A>;
  // Halves are summed in float32 and rounded once.
  Tensor sums = is_sum ? torch::stable::zero_(grad_value)
                       : torch::stable::new_zeros(grad_value, {grad_value.numel()},
                                                  arguments.weights.scalar_type());
  const auto to = value_gradient<A, A>(grad_value, sums);
  launch_value<T>(arguments, grad_output, to);
  if (!is_sum) launch_rounding<T>(to, grad_value);
}

template <typename T, typename A>
void value_by_integers(const Arguments& arguments, const Tensor& grad_output, Tensor& grad_value) {
  const auto& weights = arguments.weights;
  Tensor sums = torch::stable::new_zeros(grad_value, {grad_value.numel()},
                                         torch::headeronly::ScalarType::Long);
  Tensor bounds = torch::stable::new_zeros(weights, {2});
  auto to = value_gradient<A, int64_t>(grad_value, sums);
  to.bits = bits_of_terms<A>(arguments.sizes.queries * arguments.sizes.samples());
  auto* bound = static_cast<Bounds<A>*>(bounds.mutable_data_ptr());
  to.bounds = bound;
  launch_bound<A>(weights, &bound->weight);
  launch_bound<T>(grad_output, &bound->grad);
  launch_value<T>(arguments, grad_output, to);
  launch_rounding<T>(to, grad_value);
}

Tensor forward(const Tensor& value, std::vector<int64_t> spatial_shapes, const Tensor& locations,
               const Tensor& weights, std::optional<Tensor> query_order) {
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const Arguments arguments(value, spatial_shapes, locations, weights, query_order);
  const Sizes& s = arguments.sizes;
  Tensor output = torch::stable::new_empty(value, {s.batch, s.queries, s.heads * s.channels});
  if (s.empty()) return torch::stable::zero_(output);
  with_types(value, [&](auto* element, auto* real) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = std::remove_pointer_t<decltype(real)>;
    with_gather<T, A>(arguments,
                      [&](auto gather) { launch_forward<decltype(gather)>(arguments, output); });
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output_in, const Tensor& value,
                                            std::vector<int64_t> spatial_shapes,
                                            const Tensor& locations, const Tensor& weights,
                                            std::optional<Tensor> query_order, bool deterministic) {
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const Arguments arguments(value, spatial_shapes, locations, weights, query_order);
  const Sizes& s = arguments.sizes;
  check_grad_output(grad_output_in, value, s);
  check_devices(value, grad_output_in, "grad_output must be on the device of value");
  const Tensor grad_output = packed(grad_output_in);
  Tensor grad_value = torch::stable::empty_like(value);
  Tensor grad_locations = torch::stable::empty_like(arguments.locations);
  Tensor grad_weights = torch::stable::empty_like(arguments.weights);
  if (s.empty()) {
    torch::stable::zero_(grad_value);
    torch::stable::zero_(grad_locations);
    torch::stable::zero_(grad_weights);
    return {grad_value, grad_locations, grad_weights};
  }
  with_types(value, [&](auto* element, auto* real) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = std::remove_pointer_t<decltype(real)>;
    with_gather<T, A>(arguments, [&](auto gather) {
      launch_locations<decltype(gather)>(arguments, grad_output, grad_locations, grad_weights);
    });
    const auto by_any = deterministic ? value_by_integers<T, A> : value_by_floats<T, A>;
    by_any(arguments, grad_output, grad_value);
  });
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace sparsedet::cuda

STABLE_TORCH_LIBRARY_IMPL(sparsedet, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&sparsedet::cuda::forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&sparsedet::cuda::backward));
}
