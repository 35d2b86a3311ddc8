// Sizes and argument checks of sparsedet::ms_deform_attn that both back ends share.
//
// Only torch's stable ABI as of torch 2.10 is used. The Python interface checks the arguments with
// better messages; the checks here keep a direct call of the operator from reading out of bounds.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

namespace sparsedet {

using c10::BFloat16;
using c10::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMostCells = 1 << 24;  // along an axis: float32 has all these numbers

struct Sizes {
  int64_t batch, tokens, heads, channels, queries, levels, points;

  int64_t samples() const { return levels * points; }  // of one query and head
  bool empty() const { return batch * heads * channels * queries * samples() == 0; }
};

struct Strides {
  int64_t batch, token, head, channel;
};

inline Strides strides_of(const Tensor& value) {
  return {value.stride(0), value.stride(1), value.stride(2), value.stride(3)};
}

inline bool is_double(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double;
}

// Calls `run` with a null pointer of the element type and one of the type of the sums.
template <typename F>
void with_types(const Tensor& value, const F& run) {
  switch (value.scalar_type()) {
    case ScalarType::Double:
      return run(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    case ScalarType::Float:
      return run(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
    case ScalarType::Half:
      return run(static_cast<Half*>(nullptr), static_cast<float*>(nullptr));
    case ScalarType::BFloat16:
      return run(static_cast<BFloat16*>(nullptr), static_cast<float*>(nullptr));
    default:
      STD_TORCH_CHECK(false, "value must be float64, float32, float16 or bfloat16");
  }
}

inline Sizes check_arguments(const Tensor& value, const std::vector<int64_t>& spatial_shapes,
                             const Tensor& locations, const Tensor& weights) {
  STD_TORCH_CHECK(value.dim() == 4, "value must have 4 axes (B, N, M, D)");
  STD_TORCH_CHECK(locations.dim() == 6, "sampling_locations must have 6 axes (B, Q, M, L, P, 2)");
  STD_TORCH_CHECK(weights.dim() == 5, "attention_weights must have 5 axes (B, Q, M, L, P)");
  const Sizes s{value.size(0),     value.size(1),     value.size(2),    value.size(3),
                locations.size(1), locations.size(3), locations.size(4)};
  STD_TORCH_CHECK(spatial_shapes.size() == static_cast<size_t>(2 * s.levels),
                  "spatial_shapes must have two numbers per level");
  int64_t tokens = 0;
  for (int64_t level = 0; level < s.levels; ++level) {
    const int64_t height = spatial_shapes[2 * level], width = spatial_shapes[2 * level + 1];
    STD_TORCH_CHECK(height > 0 && width > 0, "spatial_shapes must be positive");
    STD_TORCH_CHECK(height <= kMostCells && width <= kMostCells,
                    "a level must have at most 2^24 rows and columns");
    STD_TORCH_CHECK(height <= std::numeric_limits<int32_t>::max() / width,
                    "a level must have fewer than 2^31 tokens");
    tokens += height * width;
  }
  STD_TORCH_CHECK(tokens == s.tokens, "spatial_shapes must have as many tokens as value");
  STD_TORCH_CHECK(tokens <= std::numeric_limits<int32_t>::max(),
                  "value must have fewer than 2^31 tokens");
  STD_TORCH_CHECK(
      locations.size(0) == s.batch && locations.size(2) == s.heads && locations.size(5) == 2,
      "sampling_locations must be of shape (B, Q, M, L, P, 2)");
  for (int64_t axis = 0; axis < 5; ++axis) {
    STD_TORCH_CHECK(weights.size(axis) == locations.size(axis),
                    "attention_weights must have the shape of sampling_locations without its last");
  }
  const ScalarType precise = is_double(value) ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(locations.scalar_type() == precise && weights.scalar_type() == precise,
                  "sampling_locations and attention_weights must be float32 (float64 where value "
                  "is float64)");
  return s;
}

// The contents of the order are not checked, because they are on the device.
inline void check_query_order(const std::optional<Tensor>& order, const Sizes& s) {
  if (!order) return;
  STD_TORCH_CHECK(order->dim() == 2 && order->size(0) == s.batch && order->size(1) == s.queries,
                  "query_order must be of shape (B, Q)");
  STD_TORCH_CHECK(order->scalar_type() == ScalarType::Long, "query_order must be int64");
}

inline void check_grad_output(const Tensor& grad_output, const Tensor& value, const Sizes& s) {
  STD_TORCH_CHECK(grad_output.dim() == 3 && grad_output.size(0) == s.batch &&
                      grad_output.size(1) == s.queries &&
                      grad_output.size(2) == s.heads * s.channels,
                  "grad_output must be of shape (B, Q, M * D)");
  STD_TORCH_CHECK(grad_output.scalar_type() == value.scalar_type(),
                  "grad_output must have the dtype of value");
}

}  // namespace sparsedet
