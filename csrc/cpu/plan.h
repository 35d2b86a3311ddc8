// The levels as the kernels need them, and the division of the work into tasks.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "problem.h"

namespace sparsedet::cpu {

// A value that is not grouped by head is copied if its tokens are read at least this often: at
// about this number the copy takes as long as it saves (measured).
constexpr int64_t kReadsThatPayForCopy = 16;

inline int64_t padded(int64_t samples) {
  return (samples + kMostLanes - 1) / kMostLanes * kMostLanes;
}

template <typename A>
struct Plan {
  std::vector<Level> levels;
  int64_t block, blocks, corners_size, work_size;

  Plan(const std::vector<int64_t>& spatial_shapes, const Sizes& s, bool heads_take_turns)
      // Heads that take turns at the same tokens should find them in the cache.
      : block(heads_take_turns ? 16 : 256),
        blocks((s.queries + block - 1) / block),
        corners_size((1 + kCorners) * padded(s.samples())),
        work_size(2 * corners_size + kCorners * padded(s.samples())),
        stride_(padded(s.samples()) + kMostLanes),
        reals_(6 * stride_),
        ints_(2 * stride_) {
    int64_t start = 0;
    for (int64_t level = 0; level < s.levels; ++level) {
      const int64_t rows = spatial_shapes[2 * level], columns = spatial_shapes[2 * level + 1];
      levels.push_back({start, rows * columns, columns > 1 ? 1 : 0, rows > 1 ? columns : 0});
      for (int64_t i = level * s.points; i < (level + 1) * s.points; ++i) {
        set_sample(i, rows, columns, start);
      }
      start += rows * columns;
    }
  }

  SampleLevels<A> sample_levels() const {
    const A* r = reals_.data();
    return {r,
            r + stride_,
            r + 2 * stride_,
            r + 3 * stride_,
            r + 4 * stride_,
            r + 5 * stride_,
            ints_.data(),
            ints_.data() + stride_};
  }

  int64_t forward_tasks(const Sizes& s) const { return s.batch * s.heads * blocks; }

 private:
  int64_t stride_;
  std::vector<A> reals_;
  std::vector<IntOf<A>> ints_;

  void set_sample(int64_t i, int64_t rows, int64_t columns, int64_t start) {
    const auto last = [](int64_t size) { return static_cast<A>(std::max<int64_t>(size - 2, 0)); };
    const auto next = [](int64_t size) {
      return size > 1 ? A{1} : std::numeric_limits<A>::infinity();
    };
    const A facts[] = {static_cast<A>(columns), static_cast<A>(rows),
                       last(columns),           last(rows),
                       next(columns),           next(rows)};
    for (int64_t f = 0; f < 6; ++f) reals_[f * stride_ + i] = facts[f];
    ints_[i] = static_cast<IntOf<A>>(columns);
    ints_[stride_ + i] = static_cast<IntOf<A>>(start);
  }
};

// Tasks of the backward for an image and head: one for each level if the threads would be loaded
// unevenly otherwise. This costs more preparation in total.
inline int64_t parts_of_backward(const Sizes& s, int64_t threads) {
  const int64_t tasks = s.batch * s.heads;
  return tasks % threads == 0 || tasks >= 4 * threads ? 1 : s.levels;
}

// Memory of a thread, aligned to a cache line.
template <typename A>
struct Work {
  std::vector<A> numbers;
  A* memory;

  explicit Work(int64_t size) : numbers(size + kLineNumbers) {
    const auto address = reinterpret_cast<uintptr_t>(numbers.data());
    memory = numbers.data() + (kLineNumbers - address / sizeof(A) % kLineNumbers) % kLineNumbers;
  }

 private:
  static constexpr int64_t kLineNumbers = 64 / sizeof(A);
};

}  // namespace sparsedet::cpu
