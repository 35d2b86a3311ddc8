// Multi-scale deformable attention as it is usually written, to measure against: a thread for each
// output element, scalar loads, blocks in the order of the output, and in the backward a block for
// each row (image, query, head), scalar atomic additions, sums over the channels in shared memory.
//
// Halves are read and written as halves; sums are formed in float32, as are locations, weights and
// the gradient of value.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

struct Sizes {
  int32_t batch, tokens, heads, channels, queries, levels, points;
};

namespace {

constexpr int kThreads = 256;
constexpr int kMostLevels = 16;

struct Levels {
  int32_t height[kMostLevels], width[kMostLevels], start[kMostLevels];
};

__device__ float to_float(float x) {
  return x;
}
__device__ float to_float(__half x) {
  return __half2float(x);
}
__device__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ void put(float* to, float x) {
  *to = x;
}
__device__ void put(__half* to, float x) {
  *to = __float2half(x);
}
__device__ void put(__nv_bfloat16* to, float x) {
  *to = __float2bfloat16(x);
}

struct Corner {
  bool inside;
  int64_t token;
  float weight, slope_x, slope_y;
};

// The four corners of a sample at x, y in cells.
__device__ void corners(float x, float y, int height, int width, int start, Corner (&corner)[4]) {
  const int low_x = static_cast<int>(floorf(x)), low_y = static_cast<int>(floorf(y));
  const float right = x - low_x, below = y - low_y;
  for (int c = 0; c < 4; ++c) {
    const int column = low_x + c % 2, row = low_y + c / 2;
    const float along_x = c % 2 ? right : 1 - right, along_y = c / 2 ? below : 1 - below;
    corner[c].inside = column >= 0 && column < width && row >= 0 && row < height;
    corner[c].token = start + static_cast<int64_t>(row) * width + column;
    corner[c].weight = along_x * along_y;
    corner[c].slope_x = c % 2 ? along_y : -along_y;
    corner[c].slope_y = c / 2 ? along_x : -along_x;
  }
}

template <typename T>
__global__ void forward_kernel(Sizes s, Levels levels, const T* value, const float* locations,
                               const float* weights, T* output, int64_t count) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int channel = static_cast<int>(i % s.channels);
    const int64_t row = i / s.channels;
    const int head = static_cast<int>(row % s.heads);
    const int64_t image = row / s.heads / s.queries;
    const int64_t stride = static_cast<int64_t>(s.heads) * s.channels;
    const T* base = value + image * s.tokens * stride + head * s.channels + channel;
    int64_t sample = row * s.levels * s.points;
    float sum = 0;
    for (int l = 0; l < s.levels; ++l) {
      const int height = levels.height[l], width = levels.width[l];
      for (int p = 0; p < s.points; ++p, ++sample) {
        const float x = locations[2 * sample] * width - 0.5f;
        const float y = locations[2 * sample + 1] * height - 0.5f;
        if (!(x > -1 && y > -1 && x < width && y < height)) continue;
        Corner corner[4];
        corners(x, y, height, width, levels.start[l], corner);
        float sampled = 0;
        for (const Corner& c : corner) {
          if (c.inside) sampled += c.weight * to_float(base[c.token * stride]);
        }
        sum += weights[sample] * sampled;
      }
    }
    put(output + i, sum);
  }
}

// One block of `channels` threads for each row.
template <typename T>
__global__ void backward_kernel(Sizes s, Levels levels, const T* grad_output, const T* value,
                                const float* locations, const float* weights, float* grad_value,
                                float* grad_locations, float* grad_weights) {
  extern __shared__ float shared[];  // three sums for each channel
  const int channel = threadIdx.x;
  const int64_t row = blockIdx.x;
  const int head = static_cast<int>(row % s.heads);
  const int64_t image = row / s.heads / s.queries;
  const int64_t stride = static_cast<int64_t>(s.heads) * s.channels;
  const int64_t base = image * s.tokens * stride + head * s.channels + channel;
  const float grad = to_float(grad_output[row * s.channels + channel]);
  int64_t sample = row * s.levels * s.points;
  for (int l = 0; l < s.levels; ++l) {
    const int height = levels.height[l], width = levels.width[l];
    for (int p = 0; p < s.points; ++p, ++sample) {
      const float x = locations[2 * sample] * width - 0.5f;
      const float y = locations[2 * sample + 1] * height - 0.5f;
      const float weight = weights[sample];
      float part[3] = {};  // of the gradients of x, y and weight
      if (x > -1 && y > -1 && x < width && y < height) {
        Corner corner[4];
        corners(x, y, height, width, levels.start[l], corner);
        for (const Corner& c : corner) {
          if (!c.inside) continue;
          const int64_t at = base + c.token * stride;
          const float number = to_float(value[at]);
          atomicAdd(grad_value + at, weight * c.weight * grad);
          part[0] += weight * width * c.slope_x * number * grad;
          part[1] += weight * height * c.slope_y * number * grad;
          part[2] += c.weight * number * grad;
        }
      }
      for (int k = 0; k < 3; ++k) shared[k * s.channels + channel] = part[k];
      __syncthreads();
      for (int half = s.channels / 2; half > 0; half /= 2) {
        if (channel < half) {
          for (int k = 0; k < 3; ++k) {
            shared[k * s.channels + channel] += shared[k * s.channels + channel + half];
          }
        }
        __syncthreads();
      }
      if (channel == 0) {
        grad_locations[2 * sample] = shared[0];
        grad_locations[2 * sample + 1] = shared[s.channels];
        grad_weights[sample] = shared[2 * s.channels];
      }
      __syncthreads();
    }
  }
}

Levels levels_of(const int32_t* spatial_shapes, int levels) {
  Levels table{};
  for (int l = 0, start = 0; l < levels; ++l) {
    table.height[l] = spatial_shapes[2 * l];
    table.width[l] = spatial_shapes[2 * l + 1];
    table.start[l] = start;
    start += table.height[l] * table.width[l];
  }
  return table;
}

template <typename T>
int forward(const Sizes& s, const int32_t* shapes, const void* value, const float* locations,
            const float* weights, void* output, cudaStream_t stream) {
  const int64_t count = static_cast<int64_t>(s.batch) * s.queries * s.heads * s.channels;
  const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  forward_kernel<<<blocks, kThreads, 0, stream>>>(s, levels_of(shapes, s.levels),
                                                  static_cast<const T*>(value), locations, weights,
                                                  static_cast<T*>(output), count);
  return cudaGetLastError();
}

template <typename T>
int backward(const Sizes& s, const int32_t* shapes, const void* grad_output, const void* value,
             const float* locations, const float* weights, float* grad_value, float* grad_locations,
             float* grad_weights, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(static_cast<int64_t>(s.batch) * s.queries * s.heads);
  backward_kernel<<<rows, s.channels, 3 * s.channels * sizeof(float), stream>>>(
      s, levels_of(shapes, s.levels), static_cast<const T*>(grad_output),
      static_cast<const T*>(value), locations, weights, grad_value, grad_locations, grad_weights);
  return cudaGetLastError();
}

}  // namespace

// element: 0 float32, 1 float16, 2 bfloat16. Value and outputs are contiguous; channels must be a
// power of two in the backward. Returns the error of CUDA.
extern "C" int naive_forward(int element, const Sizes* s, const int32_t* shapes, const void* value,
                             const float* locations, const float* weights, void* output,
                             cudaStream_t stream) {
  const auto run = element == 0   ? forward<float>
                   : element == 1 ? forward<__half>
                                  : forward<__nv_bfloat16>;
  return run(*s, shapes, value, locations, weights, output, stream);
}

extern "C" int naive_backward(int element, const Sizes* s, const int32_t* shapes,
                              const void* grad_output, const void* value, const float* locations,
                              const float* weights, float* grad_value, float* grad_locations,
                              float* grad_weights, cudaStream_t stream) {
  const auto run = element == 0   ? backward<float>
                   : element == 1 ? backward<__half>
                                  : backward<__nv_bfloat16>;
  return run(*s, shapes, grad_output, value, locations, weights, grad_value, grad_locations,
             grad_weights, stream);
}
