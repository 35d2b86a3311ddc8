// The gradient of value. Also compiles for the host, where the tests run it: Machine provides what
// only a thread on a GPU has.
//
// Neighbouring queries add to the same tokens, and additions in global memory dominate the cost. A
// block takes a tile of queries, one head and a chunk of samples; it sorts the corners of all
// samples by token (a hash table in shared memory counts them, so that any token may come), goes
// through them in that order with the sums in registers, and adds once per token.
#pragma once

#include "fixed_point.h"
#include "samples.h"

namespace sparsedet::cuda {

constexpr int kScatterThreads = 256;
constexpr int kScatterSamples = kScatterThreads / kTileQueries;  // of each query
constexpr int kCorners = 4;
constexpr int kItems = kScatterThreads * kCorners;
constexpr int kSlots = 2 * kItems;  // of the hash table: half of it stays empty
constexpr int kSlotBits = 11;
static_assert(kSlots == 1 << kSlotBits);
constexpr int32_t kNoToken = -1;
constexpr int kGroups = kScatterThreads / kLanes;  // a group of lanes sums one token's channels

// The groups of a warp read items far apart: the padding puts these into different banks.
SPARSEDET_INLINE constexpr int padded_item(int i) {
  return i + i / kGroups;
}

template <typename A>
struct Item {
  A weight;
  int32_t entry;  // slot * kTileQueries + query of the tile
};

template <typename A>
struct ScatterMemory {
  static constexpr int kVector = 16 / sizeof(A);  // channels of a lane
  static constexpr int kChannels = kLanes * kVector;

  A grad[kTileQueries][kChannels];  // of the output
  Item<A> item[padded_item(kItems)];
  int32_t token[kSlots];
  int32_t place[kSlots];  // first the number of items, then where they begin
  int32_t query[kTileQueries];
  int32_t items;
};

// Where the gradient of value is summed: in A, or in int64 counts of a small unit, whose sum does
// not depend on the order.
template <typename A, typename Sum>
struct ValueGradient {
  int64_t image_stride, token_stride, head_stride, channel_stride;
  Sum* sums;
  bool is_vector;           // channels adjacent, and every vector at a multiple of its size
  const Bounds<A>* bounds;  // for sums of fixed point
  int32_t bits;
};

// Corners of the sample that falls to a thread, with their slots and places among equals.
template <typename A>
struct ItemsOfSample {
  A weight[kCorners];
  int32_t slot[kCorners], rank[kCorners];
};

template <typename Machine, typename A>
SPARSEDET_INLINE int32_t find_slot(ScatterMemory<A>& memory, int32_t token,
                                   const Machine& machine) {
  int32_t slot =
      static_cast<int32_t>(static_cast<uint32_t>(token) * 2654435769u >> (32 - kSlotBits));
  while (true) {
    const int32_t there = machine.compare_and_swap(&memory.token[slot], kNoToken, token);
    if (there == kNoToken || there == token) return slot;
    slot = (slot + 1) % kSlots;
  }
}

template <typename T, typename A>
SPARSEDET_INLINE void clear_scatter(const Inputs<T, A>& in, int32_t image, const Tile& tile,
                                    ScatterMemory<A>& memory, int thread) {
  for (int i = thread; i < kSlots; i += kScatterThreads) {
    memory.token[i] = kNoToken;
    memory.place[i] = 0;
  }
  if (thread < kTileQueries) {
    const int32_t i = smaller(thread, tile.count - 1);
    memory.query[thread] = in.query(image, tile.query(i));
  }
  if (thread == 0) memory.items = 0;
}

// Reads the gradients of the output of all queries of the tile.
template <typename T, typename A>
SPARSEDET_INLINE void read_output_gradient(const Inputs<T, A>& in, const T* grad_output,
                                           int32_t image, int32_t head, const Tile& tile,
                                           int32_t first_channel, A unit, ScatterMemory<A>& memory,
                                           int thread) {
  constexpr int channels = ScatterMemory<A>::kChannels;
  for (int i = thread; i < kTileQueries * channels; i += kScatterThreads) {
    const int32_t query = i / channels, channel = first_channel + i % channels;
    A number = 0;
    if (query < tile.count && channel < in.channels) {
      const int64_t row = in.row(image, memory.query[query], head);
      number = unit * static_cast<A>(grad_output[row * in.channels + channel]);
    }
    memory.grad[query][i % channels] = number;
  }
}

// Enters the corners of one sample into the table. Those of weight zero add nothing.
template <typename Machine, typename T, typename A>
SPARSEDET_INLINE ItemsOfSample<A> enter_sample(const Inputs<T, A>& in, int32_t image, int32_t head,
                                               const Tile& tile, int32_t first_sample, A unit,
                                               ScatterMemory<A>& memory, const Machine& machine) {
  const int32_t query = machine.thread() / kScatterSamples;
  const int32_t sample = first_sample + machine.thread() % kScatterSamples;
  ItemsOfSample<A> corners = {};
  if (query < tile.count && sample < in.samples()) {
    const auto raw = raw_sample(in, in.row(image, memory.query[query], head), sample);
    const Level& level = in.level[sample / in.points];
    const Sample<A> s = PlacedSample<A>(raw, level).sample;
    const A below = unit * s.weight * s.y, above = unit * s.weight - below;
    corners.weight[1] = above * s.x;
    corners.weight[0] = above - corners.weight[1];
    corners.weight[3] = below * s.x;
    corners.weight[2] = below - corners.weight[3];
    for (int c = 0; c < kCorners; ++c) {
      if (corners.weight[c] == 0) continue;
      const int32_t token = s.token + (c % 2 ? level.x_step : 0) + (c / 2 ? level.y_step : 0);
      corners.slot[c] = find_slot(memory, token, machine);
      corners.rank[c] = machine.fetch_add(&memory.place[corners.slot[c]], 1);
    }
  }
  return corners;
}

// Turns the numbers of items into places. The slots come in any order.
template <typename Machine, typename A>
SPARSEDET_INLINE void reserve_places(ScatterMemory<A>& memory, const Machine& machine) {
  int32_t items = 0;
  for (int i = machine.thread(); i < kSlots; i += kScatterThreads) items += memory.place[i];
  int32_t place = machine.reserve(&memory.items, items);
  for (int i = machine.thread(); i < kSlots; i += kScatterThreads) {
    const int32_t count = memory.place[i];
    memory.place[i] = place;
    place += count;
  }
}

template <typename A>
SPARSEDET_INLINE void store_items(const ItemsOfSample<A>& corners, ScatterMemory<A>& memory,
                                  int thread) {
  const int32_t query = thread / kScatterSamples;
  for (int c = 0; c < kCorners; ++c) {
    if (corners.weight[c] == 0) continue;
    const int32_t place = memory.place[corners.slot[c]] + corners.rank[c];
    memory.item[padded_item(place)] = {corners.weight[c], corners.slot[c] * kTileQueries + query};
  }
}

// Channel number v of a lane: the channels of a lane are adjacent if they are added as a vector,
// otherwise those of adjacent lanes are.
template <typename Sum, int kVector>
SPARSEDET_INLINE int32_t channel_of(int lane, int v) {
  return std::is_same_v<Sum, int64_t> ? v * kLanes + lane : lane * kVector + v;
}

template <typename Machine, typename A, typename Sum, int kVector>
SPARSEDET_INLINE void add_to_token(const ValueGradient<A, Sum>& to, int64_t offset, int lane,
                                   int32_t channels, const Sum (&sums)[kVector],
                                   const Machine& machine) {
  const int32_t first = channel_of<Sum, kVector>(lane, 0);
  if constexpr (!std::is_same_v<Sum, int64_t>) {
    if (to.is_vector && first + kVector <= channels) {
      machine.add_vector(to.sums + offset + first, sums);
      return;
    }
  }
  for (int v = 0; v < kVector; ++v) {
    const int32_t channel = channel_of<Sum, kVector>(lane, v);
    if (channel < channels) machine.add(to.sums + offset + channel * to.channel_stride, sums[v]);
  }
}

// Goes through an equal share of the sorted items and adds up those of each token.
template <typename Machine, typename T, typename A, typename Sum>
SPARSEDET_INLINE void add_items(const Inputs<T, A>& in, const ValueGradient<A, Sum>& to,
                                int32_t image, int32_t head, int32_t first_channel,
                                const ScatterMemory<A>& memory, const Machine& machine) {
  constexpr int vector = ScatterMemory<A>::kVector;
  const int group = machine.thread() / kLanes, lane = machine.thread() % kLanes;
  const int32_t share = (memory.items + kGroups - 1) / kGroups;
  const int32_t end = smaller((group + 1) * share, memory.items);
  const int32_t channels = in.channels - first_channel;
  const int64_t base =
      image * to.image_stride + head * to.head_stride + first_channel * to.channel_stride;
  int32_t slot = -1;
  Sum sums[vector] = {};
  for (int32_t i = group * share; i < end; ++i) {
    const Item<A> item = memory.item[padded_item(i)];
    if (item.entry / kTileQueries != slot) {
      if (slot >= 0) {
        add_to_token(to, base + memory.token[slot] * to.token_stride, lane, channels, sums,
                     machine);
      }
      slot = item.entry / kTileQueries;
      for (Sum& sum : sums) sum = 0;
    }
    const A* grad = memory.grad[item.entry % kTileQueries];
    for (int v = 0; v < vector; ++v) {
      add_product(sums[v], item.weight, grad[channel_of<Sum, vector>(lane, v)]);
    }
  }
  if (slot >= 0) {
    add_to_token(to, base + memory.token[slot] * to.token_stride, lane, channels, sums, machine);
  }
}

// Gradient of value from a tile of queries, one head and the samples from `first_sample` on.
template <typename Machine, typename T, typename A, typename Sum>
SPARSEDET_INLINE void scatter_block(const Inputs<T, A>& in, const T* grad_output,
                                    const ValueGradient<A, Sum>& to, int32_t image, int32_t head,
                                    int32_t tile_index, int32_t first_sample,
                                    ScatterMemory<A>& memory, const Machine& machine) {
  const Tile tile = in.tile(tile_index);
  const int thread = machine.thread();
  const Units<A> unit = units_of<Sum>(to.bounds, to.bits);
  clear_scatter(in, image, tile, memory, thread);
  machine.sync();
  read_output_gradient(in, grad_output, image, head, tile, 0, unit.grad, memory, thread);
  const auto corners =
      enter_sample(in, image, head, tile, first_sample, unit.weight, memory, machine);
  machine.sync();
  reserve_places(memory, machine);
  machine.sync();
  store_items(corners, memory, thread);
  for (int32_t channel = 0; channel < in.channels; channel += ScatterMemory<A>::kChannels) {
    if (channel > 0) {
      read_output_gradient(in, grad_output, image, head, tile, channel, unit.grad, memory, thread);
    }
    machine.sync();
    add_items(in, to, image, head, channel, memory, machine);
    machine.sync();
  }
}

}  // namespace sparsedet::cuda
