// Kernels for processors with AVX2.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "problem.h"
#include "target.h"

SPARSEDET_BEGIN_TARGET("avx2,fma,f16c")

#include "backward.h"
#include "vector_avx2.h"

namespace sparsedet::cpu {

template <typename A>
using VectorOf = std::conditional_t<std::is_same_v<A, float>, VectorAvx2, Vector<A, 32>>;

template <typename T, typename A>
Kernels<T, A> Avx2::kernels() {
  return {forward_tasks<VectorOf<A>, T>, backward_tasks<VectorOf<A>, T>};
}

template Kernels<double, double> Avx2::kernels();
template Kernels<float, float> Avx2::kernels();
template Kernels<Half, float> Avx2::kernels();
template Kernels<BFloat16, float> Avx2::kernels();

}  // namespace sparsedet::cpu

SPARSEDET_END_TARGET

#endif
