// CPU kernels of sparsedet::ms_deform_attn and its backward, for torch's stable ABI.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <utility>

#include "../arguments.h"
#include "kernels.h"

namespace sparsedet::cpu {

// Runs `tasks` for the widest instruction set that the processor has. The functions differ in
// nothing but the set they are compiled for and the width of its registers in bytes.
template <typename T, typename A>
struct Portable {
  static void forward(const Inputs<T, A>& in, T* output, int64_t begin, int64_t end) {
    forward_tasks<16>(in, output, begin, end);
  }
  static void backward(const Inputs<T, A>& in, const Gradients<T, A>& grads, int64_t begin,
                       int64_t end) {
    backward_tasks<16>(in, grads, begin, end);
  }
};

#if defined(__x86_64__)
template <typename T, typename A>
struct Avx2 {
  SPARSEDET_TARGET_AVX2 static void forward(const Inputs<T, A>& in, T* output, int64_t begin,
                                            int64_t end) {
    forward_tasks<32>(in, output, begin, end);
  }
  SPARSEDET_TARGET_AVX2 static void backward(const Inputs<T, A>& in, const Gradients<T, A>& grads,
                                             int64_t begin, int64_t end) {
    backward_tasks<32>(in, grads, begin, end);
  }
};

template <typename T, typename A>
struct Avx512 {
  SPARSEDET_TARGET_AVX512 static void forward(const Inputs<T, A>& in, T* output, int64_t begin,
                                              int64_t end) {
    forward_tasks<64>(in, output, begin, end);
  }
  SPARSEDET_TARGET_AVX512 static void backward(const Inputs<T, A>& in, const Gradients<T, A>& grads,
                                               int64_t begin, int64_t end) {
    backward_tasks<64>(in, grads, begin, end);
  }
};

inline bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

inline bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// Calls `run` with the kernels for this processor.
template <typename T, typename A, typename F>
void with_kernels(const F& run) {
#if defined(__x86_64__)
  if (has_avx512()) return run(Avx512<T, A>{});
  if (has_avx2()) return run(Avx2<T, A>{});
#endif
  run(Portable<T, A>{});
}

template <typename T, typename A>
Inputs<T, A> inputs(const Tensor& value, const std::vector<int64_t>& spatial_shapes,
                    const Tensor& locations, const Tensor& weights, const Sizes& s) {
  return {s,
          strides_of(value),
          SampleLevels(spatial_shapes, s),
          static_cast<const T*>(value.const_data_ptr()),
          static_cast<const A*>(locations.const_data_ptr()),
          static_cast<const A*>(weights.const_data_ptr())};
}

Tensor with_adjacent_channels(const Tensor& value) {
  return value.stride(3) == 1 ? value : torch::stable::contiguous(value);
}

Tensor forward(const Tensor& value_in, std::vector<int64_t> spatial_shapes,
               const Tensor& locations_in, const Tensor& weights_in,
               std::optional<Tensor> query_order) {
  const Sizes s = check_arguments(value_in, spatial_shapes, locations_in, weights_in);
  check_query_order(query_order, s);
  const Tensor value = with_adjacent_channels(value_in);
  const Tensor locations = torch::stable::contiguous(locations_in);
  const Tensor weights = torch::stable::contiguous(weights_in);
  Tensor output = torch::stable::new_empty(value, {s.batch, s.queries, s.heads * s.channels});
  if (s.empty()) return torch::stable::zero_(output);
  with_types(value, [&](auto* element, auto* real) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = std::remove_pointer_t<decltype(real)>;
    const auto in = inputs<T, A>(value, spatial_shapes, locations, weights, s);
    T* to = static_cast<T*>(output.mutable_data_ptr());
    with_kernels<T, A>([&](auto kernels) {
      torch::stable::parallel_for(
          0, s.batch * query_blocks(s) * s.heads, 1,
          [&](int64_t begin, int64_t end) { decltype(kernels)::forward(in, to, begin, end); });
    });
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output_in, const Tensor& value_in,
                                            std::vector<int64_t> spatial_shapes,
                                            const Tensor& locations_in, const Tensor& weights_in,
                                            std::optional<Tensor> query_order,
                                            bool /* deterministic */) {
  const Sizes s = check_arguments(value_in, spatial_shapes, locations_in, weights_in);
  check_query_order(query_order, s);
  check_grad_output(grad_output_in, value_in, s);
  const Tensor value = with_adjacent_channels(value_in);
  const Tensor grad_output = torch::stable::contiguous(grad_output_in);
  const Tensor locations = torch::stable::contiguous(locations_in);
  const Tensor weights = torch::stable::contiguous(weights_in);
  Tensor grad_value = torch::stable::empty_like(value_in);
  Tensor grad_locations = torch::stable::empty_like(locations);
  Tensor grad_weights = torch::stable::empty_like(weights);
  if (s.empty()) {
    torch::stable::zero_(grad_value);
    torch::stable::zero_(grad_locations);
    torch::stable::zero_(grad_weights);
    return {grad_value, grad_locations, grad_weights};
  }
  with_types(value, [&](auto* element, auto* real) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = std::remove_pointer_t<decltype(real)>;
    const auto in = inputs<T, A>(value, spatial_shapes, locations, weights, s);
    const Gradients<T, A> grads{static_cast<const T*>(grad_output.const_data_ptr()),
                                strides_of(grad_value),
                                static_cast<T*>(grad_value.mutable_data_ptr()),
                                static_cast<A*>(grad_locations.mutable_data_ptr()),
                                static_cast<A*>(grad_weights.mutable_data_ptr())};
    with_kernels<T, A>([&](auto kernels) {
      torch::stable::parallel_for(0, s.batch * s.heads, 1, [&](int64_t begin, int64_t end) {
        decltype(kernels)::backward(in, grads, begin, end);
      });
    });
  });
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace sparsedet::cpu

STABLE_TORCH_LIBRARY_IMPL(sparsedet, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&sparsedet::cpu::forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&sparsedet::cpu::backward));
}
