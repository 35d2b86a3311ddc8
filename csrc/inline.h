// Functions of the host and of the device that are always inlined.
#pragma once

#if defined(__CUDACC__)
#define SPARSEDET_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define SPARSEDET_INLINE inline __attribute__((always_inline))
#else
#define SPARSEDET_INLINE inline
#endif
