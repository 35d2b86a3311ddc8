// Runs the CUDA kernels on the host: a block's threads are coroutines that give way at barriers.

#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "../../csrc/cuda/gather.h"
#include "../../csrc/cuda/scatter.h"

namespace sparsedet::cuda {

constexpr size_t kStackBytes = 256 << 10;

struct Barrier {
  int threads, waiting = 0, generation = 0;
};

class Block {
 public:
  explicit Block(int threads) : barrier_{threads}, exchanged_(threads) {
    warp_barriers_.assign(threads / kWarp, {kWarp});
    for (int i = 0; i < threads; ++i) stacks_.emplace_back(new char[kStackBytes]);
    contexts_.resize(threads);
  }

  // Returns false if some thread waits for ever.
  bool run(const std::function<void(int)>& body) {
    const int threads = static_cast<int>(contexts_.size());
    running_ = this;
    body_ = &body;
    done_.assign(threads, false);
    for (int i = 0; i < threads; ++i) {
      getcontext(&contexts_[i]);
      contexts_[i].uc_stack.ss_sp = stacks_[i].get();
      contexts_[i].uc_stack.ss_size = kStackBytes;
      contexts_[i].uc_link = &main_;
      makecontext(&contexts_[i], reinterpret_cast<void (*)()>(&Block::enter), 1, i);
    }
    int left = threads, idle_rounds = 0;
    while (left > 0 && idle_rounds < 3) {
      const int64_t before = passed_;
      for (current_ = 0; current_ < threads; ++current_) {
        if (done_[current_]) continue;
        swapcontext(&main_, &contexts_[current_]);
        left -= done_[current_];
      }
      idle_rounds = passed_ == before && left > 0 ? idle_rounds + 1 : 0;
    }
    return left == 0;
  }

  void wait(Barrier& barrier) {
    const int generation = barrier.generation;
    if (++barrier.waiting == barrier.threads) {
      barrier.waiting = 0;
      ++barrier.generation;
    }
    while (barrier.generation == generation) swapcontext(&contexts_[current_], &main_);
    ++passed_;
  }

  void wait_for_all() { wait(barrier_); }
  void wait_for_warp(int thread) { wait(warp_barriers_[thread / kWarp]); }
  double& exchanged(int thread) { return exchanged_[thread]; }

 private:
  static void enter(int thread) {
    (*running_->body_)(thread);
    running_->done_[thread] = true;
    ++running_->passed_;
  }

  static Block* running_;
  Barrier barrier_;
  std::vector<Barrier> warp_barriers_;
  std::vector<double> exchanged_;
  std::vector<std::unique_ptr<char[]>> stacks_;
  std::vector<ucontext_t> contexts_;
  std::vector<char> done_;
  const std::function<void(int)>* body_ = nullptr;
  ucontext_t main_;
  int current_ = 0;
  int64_t passed_ = 0;
};

Block* Block::running_ = nullptr;

struct Host {
  Block* block;
  int index;

  int thread() const { return index; }
  void sync() const { block->wait_for_all(); }
  void sync_warp() const { block->wait_for_warp(index); }
  template <typename A>
  A exchange(A number, int mask) const {
    block->exchanged(index) = number;
    sync_warp();
    const auto received = static_cast<A>(block->exchanged(index ^ mask));
    sync_warp();
    return received;
  }
  int32_t compare_and_swap(int32_t* at, int32_t expected, int32_t number) const {
    const int32_t before = *at;
    if (before == expected) *at = number;
    return before;
  }
  int32_t fetch_add(int32_t* to, int32_t number) const {
    const int32_t before = *to;
    *to += number;
    return before;
  }
  int32_t reserve(int32_t* to, int32_t number) const { return fetch_add(to, number); }
  template <typename A>
  void add(A* to, A number) const {
    *to += number;
  }
  template <typename A, int kVector>
  void add_vector(A* to, const A (&numbers)[kVector]) const {
    for (int v = 0; v < kVector; ++v) to[v] += numbers[v];
  }
};

// As the launches of ms_deform_attn.cu: every image, tile and head.
template <typename A, typename Run>
bool for_every_block(const Inputs<A, A>& in, int threads, const Run& run) {
  Block block(threads);
  bool went_well = true;
  for (int32_t image = 0; image < in.batch; ++image) {
    for (int32_t tile = 0; tile < in.tiling.count; ++tile) {
      for (int32_t head = 0; head < in.heads; ++head) {
        went_well &= block.run([&](int thread) { run(image, head, tile, Host{&block, thread}); });
      }
    }
  }
  return went_well;
}

template <typename A>
struct Results {
  A* output;
  const A* grad_output;
  A *grad_value, *grad_locations, *grad_weights;
};

template <typename G>
bool run_gather(const Inputs<typename G::A, typename G::A>& in,
                const Results<typename G::A>& results) {
  auto memory = std::make_unique<GatherMemory<typename G::A>>();
  return for_every_block(in, kGatherThreads,
                         [&](int32_t image, int32_t head, int32_t tile, const Host& host) {
                           forward_block<G>(in, results.output, image, head, tile, *memory, host);
                         }) &&
         for_every_block(
             in, kGatherThreads, [&](int32_t image, int32_t head, int32_t tile, const Host& host) {
               location_block<G>(in, results.grad_output, results.grad_locations,
                                 results.grad_weights, image, head, tile, *memory, host);
             });
}

template <typename A, typename Sum>
bool run_scatter(const Inputs<A, A>& in, const A* grad_output, const ValueGradient<A, Sum>& to) {
  auto memory = std::make_unique<ScatterMemory<A>>();
  return for_every_block(
      in, kScatterThreads, [&](int32_t image, int32_t head, int32_t tile, const Host& host) {
        for (int32_t first = 0; first < in.samples(); first += kScatterSamples) {
          scatter_block(in, grad_output, to, image, head, tile, first, *memory, host);
          host.sync();
        }
      });
}

template <typename A>
A largest(const A* numbers, int64_t count) {
  A most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const A number = std::abs(numbers[i]);
    most = number > most || number != number ? number : most;
  }
  return most;
}

template <typename A>
bool run_scatter_by_integers(const Inputs<A, A>& in, const Results<A>& results,
                             ValueGradient<A, A> floats, int64_t tokens) {
  const int64_t rows = static_cast<int64_t>(in.batch) * in.queries * in.heads;
  const Bounds<A> bounds{largest(in.weights, rows * in.samples()),
                         largest(results.grad_output, rows * in.channels)};
  const int64_t count = in.batch * tokens * in.heads * in.channels;
  std::vector<int64_t> sums(count);
  const ValueGradient<A, int64_t> to{
      floats.image_stride,
      floats.token_stride,
      floats.head_stride,
      floats.channel_stride,
      sums.data(),
      false,
      &bounds,
      bits_of_terms<A>(static_cast<int64_t>(in.queries) * in.samples())};
  const bool went_well = run_scatter(in, results.grad_output, to);
  for (int64_t i = 0; i < count; ++i) {
    results.grad_value[i] = from_fixed(sums[i], bounds, to.bits);
  }
  return went_well;
}

struct Options {
  int32_t vector, columns, points;  // of the gathering; 1, 1, 0 serves all
  int32_t by_level, is_vector, by_integers;
};

template <typename A>
bool gather_of_kind(const Options& o, const Inputs<A, A>& in, const Results<A>& results) {
  constexpr int vector = 16 / sizeof(A);
  if (o.vector == 1) return run_gather<Gather<A, A, 1, 1, 0>>(in, results);
  if (o.columns == 1 && o.points == 0) return run_gather<Gather<A, A, vector, 1, 0>>(in, results);
  if (o.columns == 1) return run_gather<Gather<A, A, vector, 1, 4>>(in, results);
  if (o.points == 0) return run_gather<Gather<A, A, vector, 2, 0>>(in, results);
  return run_gather<Gather<A, A, vector, 2, 4>>(in, results);
}

// sizes: batch, heads, channels, queries, levels, points; strides: image, token, head, channel.
template <typename A>
int run(const Options* options, const int64_t* sizes, const int64_t* strides,
        const int64_t* spatial_shapes, const A* value, const A* locations, const A* weights,
        const int64_t* order, const Results<A>& results) {
  Inputs<A, A> in{strides[0],
                  strides[1],
                  strides[2],
                  strides[3],
                  value,
                  locations,
                  weights,
                  order,
                  static_cast<int32_t>(sizes[0]),
                  static_cast<int32_t>(sizes[1]),
                  static_cast<int32_t>(sizes[2]),
                  static_cast<int32_t>(sizes[3]),
                  static_cast<int32_t>(sizes[4]),
                  static_cast<int32_t>(sizes[5]),
                  {},
                  {}};
  const int32_t tiles = lay_out_levels(spatial_shapes, in.levels, in.level);
  in.tiling = tiling_of(in.queries, tiles, options->by_level != 0, sizes[0] * sizes[1]);
  if (!gather_of_kind(*options, in, results)) return 1;
  const ValueGradient<A, A> to{
      strides[0], strides[1], strides[2], strides[3], results.grad_value, options->is_vector != 0,
      nullptr,    0};
  int64_t tokens = 0;
  for (int32_t l = 0; l < in.levels; ++l) tokens += in.level[l].height * in.level[l].width;
  const bool went_well = options->by_integers ? run_scatter_by_integers(in, results, to, tokens)
                                              : run_scatter(in, results.grad_output, to);
  return went_well ? 0 : 2;
}

}  // namespace sparsedet::cuda

#define SPARSEDET_EXPORT(name, A)                                                                \
  extern "C" int name(const sparsedet::cuda::Options* options, const int64_t* sizes,             \
                      const int64_t* strides, const int64_t* spatial_shapes, const A* value,     \
                      const A* locations, const A* weights, const int64_t* order, A* output,     \
                      const A* grad_output, A* grad_value, A* grad_locations, A* grad_weights) { \
    return sparsedet::cuda::run<A>(                                                              \
        options, sizes, strides, spatial_shapes, value, locations, weights, order,               \
        {output, grad_output, grad_value, grad_locations, grad_weights});                        \
  }
SPARSEDET_EXPORT(run_float, float)
SPARSEDET_EXPORT(run_double, double)

// How often each query falls into a tile; returns the number of tiles.
extern "C" int32_t count_queries(const int64_t* spatial_shapes, int32_t levels, int32_t queries,
                                 int32_t by_level, int64_t images_and_heads, int32_t* count,
                                 int32_t* largest_tile) {
  using namespace sparsedet::cuda;
  Level table[kMostLevels];
  const int32_t tiles = lay_out_levels(spatial_shapes, levels, table);
  const Tiling tiling = tiling_of(queries, tiles, by_level != 0, images_and_heads);
  *largest_tile = 0;
  for (int32_t t = 0; t < tiling.count; ++t) {
    const Tile tile = tile_of(tiling, table, levels, queries, t);
    *largest_tile = tile.count > *largest_tile ? tile.count : *largest_tile;
    for (int32_t i = 0; i < tile.count; ++i) ++count[tile.query(i)];
  }
  return tiling.count;
}

// The sum of numbers[i] * factors[i] by integers, as that of one token's gradient.
extern "C" float sum_by_integers(const float* factors, const float* numbers, int64_t count) {
  using namespace sparsedet::cuda;
  const Bounds<float> bounds{largest(factors, count), largest(numbers, count)};
  const int32_t bits = bits_of_terms<float>(count);
  const Units<float> units = fixed_units(bounds, bits);
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    add_product(sum, units.weight * factors[i], units.grad * numbers[i]);
  }
  return from_fixed(sum, bounds, bits);
}
