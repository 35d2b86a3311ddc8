// Kernels for the instruction set that the library is compiled for.

#include "backward.h"

namespace sparsedet::cpu {

template <typename T, typename A>
Kernels<T, A> Portable::kernels() {
  return {forward_tasks<Vector<A, 16>, T>, backward_tasks<Vector<A, 16>, T>};
}

template Kernels<double, double> Portable::kernels();
template Kernels<float, float> Portable::kernels();
template Kernels<Half, float> Portable::kernels();
template Kernels<BFloat16, float> Portable::kernels();

}  // namespace sparsedet::cpu
