// CPU kernels of sparsedet::ms_deform_attn and its backward, for torch's stable ABI.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <tuple>
#include <utility>

#include "../arguments.h"
#include "plan.h"
#include "problem.h"

namespace sparsedet::cpu {

enum InstructionSet : int64_t { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

// The widest instruction set that may be used: tests and benchmarks try the narrower ones.
std::atomic<int64_t> most_allowed{kAvx512};

int64_t instruction_set() {
  int64_t widest = kPortable;
#if defined(__x86_64__)
  // Processors with AVX2 also convert halves; not every compiler has a name for that feature.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    widest = kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      widest = kAvx512;
    }
  }
#endif
  return std::min(widest, most_allowed.load());
}

int64_t limit_instruction_set(int64_t most) {
  most_allowed = most;
  return instruction_set();
}

template <typename T, typename A>
Kernels<T, A> kernels() {
#if defined(__x86_64__)
  const int64_t set = instruction_set();
  if (set == kAvx512) return Avx512::kernels<T, A>();
  if (set == kAvx2) return Avx2::kernels<T, A>();
#endif
  return Portable::kernels<T, A>();
}

bool heads_share_tokens(const Tensor& value) {
  return value.stride(2) == 0;
}

// With adjacent channels, and grouped by head if the queries read each token so often that this
// copy saves time.
Tensor to_read(const Tensor& value, const Sizes& s) {
  const bool adjacent = value.stride(3) == 1 || s.channels == 1;
  const bool packed = adjacent && (value.stride(1) <= s.channels || heads_share_tokens(value));
  if (packed) return value;
  const int64_t reads = s.queries * s.samples() * kCorners;
  if (reads < kReadsThatPayForCopy * s.tokens) {
    return adjacent ? value : torch::stable::contiguous(value);
  }
  const Tensor head_major = torch::stable::contiguous(torch::stable::transpose(value, 1, 2));
  return torch::stable::transpose(head_major, 1, 2);
}

// The order must contain each query once, because the kernels write to the rows that it names.
void check_is_permutation(const Tensor& order, const Sizes& s) {
  const auto* query = static_cast<const int64_t*>(order.const_data_ptr());
  for (int64_t image = 0; image < s.batch; ++image, query += s.queries) {
    std::vector<bool> seen(s.queries);
    for (int64_t i = 0; i < s.queries; ++i) {
      STD_TORCH_CHECK(query[i] >= 0 && query[i] < s.queries && !seen[query[i]],
                      "query_order must be a permutation of the queries of each image");
      seen[query[i]] = true;
    }
  }
}

std::optional<Tensor> packed_order(const std::optional<Tensor>& order, const Sizes& s) {
  check_query_order(order, s);
  if (!order) return std::nullopt;
  const Tensor packed = torch::stable::contiguous(*order);
  check_is_permutation(packed, s);
  return packed;
}

// The arguments, packed as the kernels read them.
struct Packed {
  Sizes sizes;
  Tensor value, locations, weights;
  std::optional<Tensor> order;

  Packed(const Tensor& value, const std::vector<int64_t>& spatial_shapes, const Tensor& locations,
         const Tensor& weights, const std::optional<Tensor>& order)
      : sizes(check_arguments(value, spatial_shapes, locations, weights)),
        value(sizes.empty() ? value : to_read(value, sizes)),
        locations(torch::stable::contiguous(locations)),
        weights(torch::stable::contiguous(weights)),
        order(packed_order(order, sizes)) {}

  template <typename T, typename A>
  Inputs<T, A> inputs(const Plan<A>& plan) const {
    return {sizes,
            strides_of(value),
            plan.levels.data(),
            plan.sample_levels(),
            static_cast<const T*>(value.const_data_ptr()),
            static_cast<const A*>(locations.const_data_ptr()),
            static_cast<const A*>(weights.const_data_ptr()),
            nullptr,
            plan.block,
            plan.corners_size};
  }
};

Tensor forward(const Tensor& value, std::vector<int64_t> spatial_shapes, const Tensor& locations,
               const Tensor& weights, std::optional<Tensor> query_order) {
  const Packed packed(value, spatial_shapes, locations, weights, query_order);
  const Sizes& s = packed.sizes;
  Tensor output = torch::stable::new_empty(value, {s.batch, s.queries, s.heads * s.channels});
  if (s.empty()) return torch::stable::zero_(output);
  with_types(value, [&](auto* element, auto* real) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = std::remove_pointer_t<decltype(real)>;
    const Plan<A> plan(spatial_shapes, s, heads_share_tokens(packed.value));
    auto in = packed.inputs<T, A>(plan);
    // The map of one head fits into the caches whatever the order is, and locations and outputs are
    // read and written fastest in memory order; the map of all heads does not fit.
    if (packed.order && heads_share_tokens(packed.value)) {
      in.order = static_cast<const int64_t*>(packed.order->const_data_ptr());
    }
    T* to = static_cast<T*>(output.mutable_data_ptr());
    const auto run = kernels<T, A>().forward;
    torch::stable::parallel_for(0, plan.forward_tasks(s), 1, [&](int64_t begin, int64_t end) {
      Work<A> work(plan.work_size);
      run(in, to, work.memory, begin, end);
    });
  });
  return output;
}

// Sums of the gradient of value, (B, M, N, D): the gradient itself if it has that layout and the
// type of the sums.
Tensor sums_for(const Tensor& grad_value, const Tensor& locations, const Sizes& s) {
  const Tensor head_major = torch::stable::transpose(grad_value, 1, 2);
  if (head_major.is_contiguous() && grad_value.scalar_type() == locations.scalar_type()) {
    return head_major;
  }
  return torch::stable::new_empty(grad_value, {s.batch, s.heads, s.tokens, s.channels},
                                  locations.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output_in, const Tensor& value,
                                            std::vector<int64_t> spatial_shapes,
                                            const Tensor& locations, const Tensor& weights,
                                            std::optional<Tensor> query_order,
                                            bool /* deterministic: it always is */) {
  const Packed packed(value, spatial_shapes, locations, weights, query_order);
  const Sizes& s = packed.sizes;
  check_grad_output(grad_output_in, value, s);
  const Tensor grad_output = torch::stable::contiguous(grad_output_in);
  Tensor grad_value = torch::stable::empty_like(value);
  Tensor grad_locations = torch::stable::empty_like(packed.locations);
  Tensor grad_weights = torch::stable::empty_like(packed.weights);
  if (s.empty()) {
    torch::stable::zero_(grad_value);
    torch::stable::zero_(grad_locations);
    torch::stable::zero_(grad_weights);
    return {grad_value, grad_locations, grad_weights};
  }
  Tensor sums = sums_for(grad_value, packed.locations, s);
  with_types(value, [&](auto* element, auto* real) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = std::remove_pointer_t<decltype(real)>;
    const Plan<A> plan(spatial_shapes, s, false);
    const auto in = packed.inputs<T, A>(plan);
    const Gradients<T, A> grads{static_cast<const T*>(grad_output.const_data_ptr()),
                                static_cast<A*>(sums.mutable_data_ptr()),
                                static_cast<A*>(grad_locations.mutable_data_ptr()),
                                static_cast<A*>(grad_weights.mutable_data_ptr()),
                                parts_of_backward(s, torch::stable::get_num_threads())};
    const auto run = kernels<T, A>().backward;
    const int64_t tasks = s.batch * s.heads * grads.parts;
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      Work<A> work(plan.work_size);
      run(in, grads, work.memory, begin, end);
    });
  });
  if (sums.data_ptr() != grad_value.data_ptr()) {
    torch::stable::copy_(grad_value, torch::stable::transpose(sums, 1, 2));
  }
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace sparsedet::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(sparsedet, m) {
  m.def("_limit_instruction_set(int most) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(sparsedet, CompositeExplicitAutograd, m) {
  m.impl("_limit_instruction_set", TORCH_BOX(&sparsedet::cpu::limit_instruction_set));
}

STABLE_TORCH_LIBRARY_IMPL(sparsedet, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&sparsedet::cpu::forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&sparsedet::cpu::backward));
}
