// Kernels for processors with AVX-512.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "problem.h"
#include "target.h"

// The tuning, of those tried, with which GCC made the fastest loop over samples.
SPARSEDET_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,tune=znver2")

#include "backward.h"
#include "vector_avx512.h"

namespace sparsedet::cpu {

template <typename A>
using VectorOf = std::conditional_t<std::is_same_v<A, float>, VectorAvx512, Vector<A, 64>>;

template <typename T, typename A>
Kernels<T, A> Avx512::kernels() {
  return {forward_tasks<VectorOf<A>, T>, backward_tasks<VectorOf<A>, T>};
}

template Kernels<double, double> Avx512::kernels();
template Kernels<float, float> Avx512::kernels();
template Kernels<Half, float> Avx512::kernels();
template Kernels<BFloat16, float> Avx512::kernels();

}  // namespace sparsedet::cpu

SPARSEDET_END_TARGET

#endif
