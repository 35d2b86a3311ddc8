// The inputs of the CPU kernels.
//
// They are compiled once for each instruction set (kernels_*.cpp). These files share only plain
// data: the linker keeps one copy of an inline function for all processors, and it might keep the
// one compiled for AVX-512.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../arguments.h"

namespace sparsedet::cpu {

constexpr int kCorners = 4;     // of the cell around a sample: row by row
constexpr int kMostLanes = 16;  // samples in a register of any instruction set

// Integers as wide as the type of the sums.
template <typename A>
using IntOf = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;

// A level of the pyramid. Its steps are the distances to the next column and row, in tokens; zero
// if there is only one.
struct Level {
  int64_t start, tokens, column_step, row_step;
};

// Facts of the level of each sample (level, point) of a query and head, padded so that a register
// may be filled starting at any sample.
template <typename A>
struct SampleLevels {
  const A *width, *height;
  const A *last_column, *last_row;  // at which a pair of neighbours may begin
  const A *next_column,
      *next_row;                   // distance of the second neighbour; infinite where there is none
  const IntOf<A>*columns, *start;  // in tokens
};

template <typename T, typename A>
struct Inputs {
  Sizes sizes;
  Strides strides;  // of value; its channels are adjacent
  const Level* levels;
  SampleLevels<A> sample_levels;
  const T* value;
  const A* locations;
  const A* weights;
  const int64_t* order;  // (image, query) in which queries are worked on, or null
  int64_t block;         // queries of a task of the forward
  int64_t corners_size;  // of the prepared samples of a query and head, in numbers
};

template <typename T, typename A>
struct Gradients {
  const T* output;
  A* value;  // (image, head, token, channel), packed
  A* locations;
  A* weights;
  int64_t parts;  // tasks of an image and head: one, or one for each level
};

// Kernels for one instruction set. They run the tasks [begin, end) in their own memory, which is
// aligned to a cache line: two prepared queries and, in the backward, kCorners sums of each sample.
template <typename T, typename A>
struct Kernels {
  void (*forward)(const Inputs<T, A>& in, T* output, A* work, int64_t begin, int64_t end);
  void (*backward)(const Inputs<T, A>& in, const Gradients<T, A>& grads, A* work, int64_t begin,
                   int64_t end);
};

// Defined in kernels_<set>.cpp.
struct Portable {
  template <typename T, typename A>
  static Kernels<T, A> kernels();
};
struct Avx2 {
  template <typename T, typename A>
  static Kernels<T, A> kernels();
};
struct Avx512 {
  template <typename T, typename A>
  static Kernels<T, A> kernels();
};

}  // namespace sparsedet::cpu
