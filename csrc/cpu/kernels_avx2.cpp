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
const Kernels<T, A> Avx2::kernels = {forward_tasks<VectorOf<A>, T>, backward_tasks<VectorOf<A>, T>};

template const Kernels<double, double> Avx2::kernels<double, double>;
template const Kernels<float, float> Avx2::kernels<float, float>;
template const Kernels<Half, float> Avx2::kernels<Half, float>;
template const Kernels<BFloat16, float> Avx2::kernels<BFloat16, float>;

}  // namespace sparsedet::cpu

SPARSEDET_END_TARGET

#endif
