// Gathering kernels: the output, and the gradients of locations and weights. Also compiles for the
// host, where the tests run it: Machine provides what only a thread on a GPU has.
//
// The kLanes lanes of a row place a chunk of kLanes samples, one each, and exchange them; then
// every lane goes through the chunk with its own channels. Where the channels of a head need only
// half of the lanes, the other half reads the right column of the four corners: the row is then
// read in pieces as long as with all lanes.
#pragma once

#include "samples.h"

namespace sparsedet::cuda {

// kPoints: points per level where known (a divisor of kLanes), else 0.
template <typename T_, typename A_, int kVector_, int kColumns_, int kPoints_>
struct Gather {
  using T = T_;
  using A = A_;
  static constexpr int kVector = kVector_, kColumns = kColumns_, kPoints = kPoints_;
  static constexpr int kChannelLanes = kLanes / kColumns;
  static constexpr int kBlockChannels = kChannelLanes * kVector;  // worked on at a time
  // Vectors have adjacent channels and strides of less than 2 GB (see ms_deform_attn.cu).
  using Stride = std::conditional_t<kVector == 1, int64_t, uint32_t>;
};

// Bytes from a token to those of the next column and row.
struct Steps {
  int64_t x, y;
};

template <typename G>
struct Lane {
  using T = typename G::T;
  using A = typename G::A;

  int column;       // which of the corners' columns, where they are split
  int32_t channel;  // its first
  bool has_channels;
  const char* value;
  typename G::Stride token_stride;  // bytes

  SPARSEDET_INLINE Lane(const Inputs<T, A>& in, int32_t image, int32_t head, int32_t first_channel,
                        int lane)
      : column(lane / G::kChannelLanes),
        channel(first_channel + lane % G::kChannelLanes * G::kVector),
        has_channels(channel < in.channels),
        token_stride(static_cast<typename G::Stride>(in.token_stride * sizeof(T))) {
    if (!has_channels) channel = 0;  // reads what is there
    value = reinterpret_cast<const char*>(in.value + image * in.image_stride +
                                          head * in.head_stride + channel * in.channel_stride);
  }

  SPARSEDET_INLINE const char* at(int32_t token) const {
    return address_of(value, token, token_stride);
  }

  SPARSEDET_INLINE Steps steps(const Level& level) const {
    const auto stride = static_cast<int64_t>(token_stride);
    return {level.x_step * stride, level.y_step * stride};
  }
};

constexpr int kLoadsAtOnce = 8;

// What a lane reads of a sample, the row first, with the weights.
template <typename G>
struct Corners {
  static constexpr int kCount = 4 / G::kColumns;
  using A = typename G::A;

  Vector<typename G::T, G::kVector> value[kCount];
  A weight[kCount];

  SPARSEDET_INLINE void read(const Lane<G>& lane, const Sample<A>& s, const Steps& steps) {
    if constexpr (G::kColumns == 2) {
      const A column = s.weight * (lane.column ? s.x : 1 - s.x);
      const char* above = lane.at(s.token) + (lane.column ? steps.x : 0);
      value[0] = load(above);
      value[1] = load(above + steps.y);
      weight[1] = column * s.y;
      weight[0] = column - weight[1];
    } else {
      const char* above = lane.at(s.token);
      const char* below = above + steps.y;
      value[0] = load(above);
      value[1] = load(above + steps.x);
      value[2] = load(below);
      value[3] = load(below + steps.x);
      const A low = s.weight * s.y, high = s.weight - low;
      weight[1] = high * s.x;
      weight[0] = high - weight[1];
      weight[3] = low * s.x;
      weight[2] = low - weight[3];
    }
  }

  static SPARSEDET_INLINE Vector<typename G::T, G::kVector> load(const char* from) {
    return load_vector<typename G::T, G::kVector>(reinterpret_cast<const typename G::T*>(from));
  }

  SPARSEDET_INLINE void add_to(A (&sums)[G::kVector]) const {
    for (int c = 0; c < kCount; ++c) {
      for (int v = 0; v < G::kVector; ++v) {
        sums[v] += weight[c] * static_cast<A>(value[c].element[v]);
      }
    }
  }

  SPARSEDET_INLINE void dot(const A (&grad_output)[G::kVector], A (&dots)[kCount]) const {
    for (int c = 0; c < kCount; ++c) {
      A sum = 0;
      for (int v = 0; v < G::kVector; ++v) {
        sum += grad_output[v] * static_cast<A>(value[c].element[v]);
      }
      dots[c] = sum;
    }
  }
};

// Level of a sample and, for samples after the last, of some level.
template <typename G, typename T, typename A>
SPARSEDET_INLINE const Level& level_of(const Inputs<T, A>& in, int32_t sample) {
  const int32_t level = sample / (G::kPoints ? G::kPoints : in.points);
  return in.level[smaller(level, in.levels - 1)];
}

// Samples `first` to `first` + kLanes of a row, from what the lanes have placed.
template <typename G, typename T, typename A>
SPARSEDET_INLINE void add_chunk(const Inputs<T, A>& in, const Lane<G>& lane, int32_t first,
                                const Sample<A>* chunk, A (&sums)[G::kVector]) {
  constexpr int step = G::kPoints ? G::kPoints : 1;
  SPARSEDET_UNROLL
  for (int i = 0; i < kLanes; i += step) {
    if (first + i >= in.samples()) break;
    const Steps steps = lane.steps(level_of<G>(in, first + i));
    // Several loads are issued before the first result is needed.
    constexpr int at_once = smaller(step, kLoadsAtOnce * G::kColumns / 4);
    SPARSEDET_UNROLL
    for (int p = 0; p < step; p += at_once) {
      Corners<G> corners[at_once];
      for (int k = 0; k < at_once; ++k) corners[k].read(lane, chunk[i + p + k], steps);
      for (int k = 0; k < at_once; ++k) corners[k].add_to(sums);
    }
  }
}

// The dot products of two samples for the two halves of the lanes: the lower half continues with
// the sample of `low`, the upper one with that of `high`.
template <typename G, typename A, typename Machine>
SPARSEDET_INLINE void split_pair(bool is_upper, const A (&low)[Corners<G>::kCount],
                                 const A (&high)[Corners<G>::kCount], const Machine& machine,
                                 A (&dots)[4]) {
  for (int d = 0; d < Corners<G>::kCount; ++d) {
    const A keep = is_upper ? high[d] : low[d];
    const A received = machine.exchange(is_upper ? low[d] : high[d], kLanes / 2);
    if constexpr (G::kColumns == 2) {
      dots[2 * d] = is_upper ? received : keep;
      dots[2 * d + 1] = is_upper ? keep : received;
    } else {
      dots[d] = keep + received;
    }
  }
}

// Dot products of the chunk's samples, summed over the lanes: lane n ends with those of sample n.
// Of every kWidth-th sample from `i` on, lanes that differ in bits below kWidth have the same.
template <int kWidth, typename G, typename Machine>
struct ChunkDots {
  using A = typename G::A;

  const Inputs<typename G::T, A>& in;
  const Lane<G>& lane;
  int n;
  int32_t first;
  const Sample<A>* chunk;
  const A (&grad_output)[G::kVector];
  const Machine& machine;

  SPARSEDET_INLINE void operator()(int i, A (&dots)[4]) const {
    if constexpr (kWidth == kLanes / 2) {
      A low[Corners<G>::kCount], high[Corners<G>::kCount];
      dot(i, low);
      dot(i + kWidth, high);
      split_pair<G>((n & kWidth) != 0, low, high, machine, dots);
    } else {
      const ChunkDots<2 * kWidth, G, Machine> half{in, lane, n, first, chunk, grad_output, machine};
      A low[4], high[4];
      half(i, low);
      half(i + kWidth, high);
      const bool is_upper = (n & kWidth) != 0;
      for (int d = 0; d < 4; ++d) {
        dots[d] =
            (is_upper ? high[d] : low[d]) + machine.exchange(is_upper ? low[d] : high[d], kWidth);
      }
    }
  }

  SPARSEDET_INLINE void dot(int i, A (&dots)[Corners<G>::kCount]) const {
    Corners<G> corners;  // samples after the last one read some token
    corners.read(lane, chunk[i], lane.steps(level_of<G>(in, first + i)));
    corners.dot(grad_output, dots);
  }
};

constexpr int kGatherThreads = 128;
constexpr int kGatherRows = kGatherThreads / kLanes;  // at a time
constexpr int kWarp = 32;

// One sample more than needed, so that the rows of a warp lie in different banks.
template <typename A>
struct GatherMemory {
  Sample<A> chunk[kGatherRows][kLanes + 1];
};

// Calls visit(row, is_there) for the rows of a tile that belong to the thread. All threads of a
// warp take part: those after the last row repeat it with is_there false.
template <typename T, typename A, typename Visit>
SPARSEDET_INLINE void visit_rows(const Inputs<T, A>& in, int32_t image, int32_t head, int32_t tile,
                                 int thread, const Visit& visit) {
  const Tile queries = in.tile(tile);
  const int32_t inside = thread % kWarp / kLanes;
  for (int32_t first = thread / kWarp * (kWarp / kLanes); first < queries.count;
       first += kGatherRows) {
    const int32_t i = smaller(first + inside, queries.count - 1);
    visit(in.row(image, in.query(image, queries.query(i)), head), first + inside == i);
  }
}

// Output of a tile of queries and one head.
template <typename G, typename Machine>
SPARSEDET_INLINE void forward_block(const Inputs<typename G::T, typename G::A>& in,
                                    typename G::T* output, int32_t image, int32_t head,
                                    int32_t tile, GatherMemory<typename G::A>& memory,
                                    const Machine& machine) {
  using T = typename G::T;
  using A = typename G::A;
  const int thread = machine.thread(), n = thread % kLanes;
  Sample<A>* chunk = memory.chunk[thread / kLanes];
  visit_rows(in, image, head, tile, thread, [&](int64_t row, bool is_there) {
    for (int32_t block = 0; block < in.channels; block += G::kBlockChannels) {
      const Lane<G> lane(in, image, head, block, n);
      A sums[G::kVector] = {};
      RawSample<A> raw = raw_sample(in, row, n);
      SPARSEDET_KEEP_LOOP
      for (int32_t first = 0; first < in.samples(); first += kLanes) {
        chunk[n] = PlacedSample<A>(raw, level_of<G>(in, first + n)).sample;
        machine.sync_warp();
        raw = raw_sample(in, row, first + kLanes + n);  // comes while the sums are formed
        add_chunk(in, lane, first, chunk, sums);
        machine.sync_warp();
      }
      if constexpr (G::kColumns == 2) {
        for (A& sum : sums) sum += machine.exchange(sum, kLanes / 2);
      }
      if (is_there && lane.has_channels && lane.column == 0) {
        T* to = output + row * in.channels + lane.channel;
        store_vector(to, sums);
      }
    }
  });
}

// Gradients of the locations and weights of a tile of queries and one head.
template <typename G, typename Machine>
SPARSEDET_INLINE void location_block(const Inputs<typename G::T, typename G::A>& in,
                                     const typename G::T* grad_output,
                                     typename G::A* grad_locations, typename G::A* grad_weights,
                                     int32_t image, int32_t head, int32_t tile,
                                     GatherMemory<typename G::A>& memory, const Machine& machine) {
  using A = typename G::A;
  const int thread = machine.thread(), n = thread % kLanes;
  Sample<A>* chunk = memory.chunk[thread / kLanes];
  visit_rows(in, image, head, tile, thread, [&](int64_t row, bool is_there) {
    for (int32_t block = 0; block < in.channels; block += G::kBlockChannels) {
      const Lane<G> lane(in, image, head, block, n);
      A grad[G::kVector] = {};
      if (lane.has_channels) {
        const auto from =
            load_vector<typename G::T, G::kVector>(grad_output + row * in.channels + lane.channel);
        for (int v = 0; v < G::kVector; ++v) grad[v] = static_cast<A>(from.element[v]);
      }
      SPARSEDET_KEEP_LOOP
      for (int32_t first = 0; first < in.samples(); first += kLanes) {
        const RawSample<A> raw = raw_sample(in, row, first + n);
        const Level& level = level_of<G>(in, first + n);
        const PlacedSample<A> placed(raw, level);
        chunk[n] = placed.sample;
        machine.sync_warp();
        A dots[4];
        ChunkDots<1, G, Machine>{in, lane, n, first, chunk, grad, machine}(0, dots);
        machine.sync_warp();
        if (!is_there || first + n >= in.samples()) continue;
        const RawSample<A> part = placed.gradient(raw, level, dots);
        const int64_t i = row * in.samples() + first + n;
        grad_locations[2 * i] = part.x + (block ? grad_locations[2 * i] : 0);
        grad_locations[2 * i + 1] = part.y + (block ? grad_locations[2 * i + 1] : 0);
        grad_weights[i] = part.weight + (block ? grad_weights[i] : 0);
      }
    }
  });
}

}  // namespace sparsedet::cuda
