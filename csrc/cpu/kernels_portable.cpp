// Kernels for whatever the library is compiled for.

#include "backward.h"

namespace sparsedet::cpu {

template <typename T, typename A>
const Kernels<T, A> Portable::kernels = {forward_tasks<Vector<A, 16>, T>,
                                         backward_tasks<Vector<A, 16>, T>};

template const Kernels<double, double> Portable::kernels<double, double>;
template const Kernels<float, float> Portable::kernels<float, float>;
template const Kernels<Half, float> Portable::kernels<Half, float>;
template const Kernels<BFloat16, float> Portable::kernels<BFloat16, float>;

}  // namespace sparsedet::cpu
