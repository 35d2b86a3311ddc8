// The kernels, and what only a thread on a GPU has.
#pragma once

#include <cuda_runtime.h>

#include "gather.h"
#include "scatter.h"

namespace sparsedet::cuda {

struct Device {
  __device__ __forceinline__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ void sync_warp() const { __syncwarp(); }

  // The number of the lane of the warp whose index differs by the bits of the mask.
  template <typename A>
  __device__ __forceinline__ A exchange(A number, int mask) const {
    return __shfl_xor_sync(0xffffffff, number, mask);
  }

  // In shared memory.
  __device__ __forceinline__ int32_t compare_and_swap(int32_t* at, int32_t expected,
                                                      int32_t number) const {
    return atomicCAS(at, expected, number);
  }
  __device__ __forceinline__ int32_t fetch_add(int32_t* to, int32_t number) const {
    return atomicAdd(to, number);
  }

  // As fetch_add, with one addition for a warp of which all threads take part.
  __device__ __forceinline__ int32_t reserve(int32_t* to, int32_t number) const {
    const int lane = thread() % kWarp;
    int32_t upto = number;
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int32_t before = __shfl_up_sync(0xffffffff, upto, distance);
      if (lane >= distance) upto += before;
    }
    int32_t first = lane == kWarp - 1 ? atomicAdd(to, upto) : 0;
    first = __shfl_sync(0xffffffff, first, kWarp - 1);
    return first + upto - number;
  }

  // In global memory.
  template <typename A>
  __device__ __forceinline__ void add(A* to, A number) const {
    atomicAdd(to, number);
  }
  __device__ __forceinline__ void add(int64_t* to, int64_t number) const {
    atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(number));
  }
#if __CUDA_ARCH__ >= 900
  __device__ __forceinline__ void add_four(float* to, const float (&numbers)[4]) const {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(numbers[0]),
                 "f"(numbers[1]), "f"(numbers[2]), "f"(numbers[3])
                 : "memory");
  }
#endif
  template <typename A, int kVector>
  __device__ __forceinline__ void add_vector(A* to, const A (&numbers)[kVector]) const {
#if __CUDA_ARCH__ >= 900
    if constexpr (std::is_same_v<A, float> && kVector == 4) {
      add_four(to, numbers);
    } else
#endif
    {
      for (int v = 0; v < kVector; ++v) add(to + v, numbers[v]);
    }
  }
};

// What a block works on: blocks go through the tiles first, then the heads, then the images.
struct Place {
  int32_t image, head, tile;

  template <typename T, typename A>
  __device__ __forceinline__ explicit Place(const Inputs<T, A>& in) {
    const auto tiles = static_cast<uint32_t>(in.tiling.count);
    const auto heads = static_cast<uint32_t>(in.heads);
    const uint32_t index = blockIdx.x / tiles;
    tile = static_cast<int32_t>(blockIdx.x - index * tiles);
    image = static_cast<int32_t>(index / heads);
    head = static_cast<int32_t>(index - image * heads);
  }
};

constexpr int kGatherBlocks = 6;  // of a multiprocessor: leaves the registers that are needed

template <typename G>
__global__ void __launch_bounds__(kGatherThreads, kGatherBlocks)
    forward_kernel(const __grid_constant__ Inputs<typename G::T, typename G::A> in,
                   typename G::T* output) {
  __shared__ GatherMemory<typename G::A> memory;
  const Place at(in);
  forward_block<G>(in, output, at.image, at.head, at.tile, memory, Device{});
}

template <typename G>
__global__ void __launch_bounds__(kGatherThreads, kGatherBlocks)
    location_kernel(const __grid_constant__ Inputs<typename G::T, typename G::A> in,
                    const typename G::T* grad_output, typename G::A* grad_locations,
                    typename G::A* grad_weights) {
  __shared__ GatherMemory<typename G::A> memory;
  const Place at(in);
  location_block<G>(in, grad_output, grad_locations, grad_weights, at.image, at.head, at.tile,
                    memory, Device{});
}

// The chunk of samples is the block's y.
template <typename T, typename A, typename Sum>
__global__ void __launch_bounds__(kScatterThreads)
    value_kernel(const __grid_constant__ Inputs<T, A> in, const T* grad_output,
                 const __grid_constant__ ValueGradient<A, Sum> to) {
  __shared__ ScatterMemory<A> memory;
  const Place at(in);
  scatter_block(in, grad_output, to, at.image, at.head, at.tile,
                static_cast<int32_t>(blockIdx.y) * kScatterSamples, memory, Device{});
}

// Raises `bound` to the largest absolute value. The bits of positive numbers are ordered as the
// numbers, with infinity and NaN above all.
template <typename T, typename A>
__global__ void bound_kernel(const T* numbers, int64_t count, A* bound) {
  using Bits = std::conditional_t<sizeof(A) == 8, unsigned long long, unsigned>;
  Bits most = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const A number = std::abs(static_cast<A>(numbers[i]));
    Bits bits;
    memcpy(&bits, &number, sizeof(bits));
    most = bits > most ? bits : most;
  }
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const Bits other = __shfl_xor_sync(0xffffffff, most, mask);
    most = other > most ? other : most;
  }
  if (threadIdx.x % kWarp == 0) atomicMax(reinterpret_cast<Bits*>(bound), most);
}

// From the sums to the gradient of value, element by element as they lie in memory.
template <typename T, typename A, typename Sum>
__global__ void round_kernel(const Sum* sums, int64_t count, const Bounds<A>* bounds, int32_t bits,
                             T* to) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    if constexpr (std::is_same_v<Sum, int64_t>) {
      to[i] = static_cast<T>(from_fixed(sums[i], *bounds, bits));
    } else {
      to[i] = static_cast<T>(sums[i]);
    }
  }
}

}  // namespace sparsedet::cuda
