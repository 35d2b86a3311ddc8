// Which queries a block works on. Also compiles for the host, where the tests run it.
//
// Queries that look at neighbouring places share what they read, as long as it stays in the first
// cache. A block therefore takes a tile of neighbouring queries and one head: 8 x 8 tokens of a
// level where the queries are all tokens, and 64 queries in the given order elsewhere.
#pragma once

#include <cstdint>

#include "../inline.h"

#if defined(__CUDACC__)
#define SPARSEDET_UNROLL _Pragma("unroll")
#define SPARSEDET_KEEP_LOOP _Pragma("unroll 1")
#else
#define SPARSEDET_UNROLL
#define SPARSEDET_KEEP_LOOP
#endif

namespace sparsedet::cuda {

constexpr int kMostLevels = 64;  // the levels travel in the arguments of the kernel
constexpr int kTileSide = 8;
constexpr int kTileQueries = kTileSide * kTileSide;
// Fewer blocks than this leave multiprocessors idle: tiles in order are then cut in two.
constexpr int64_t kFewBlocks = 512;

struct Level {
  int32_t height, width, start;
  int32_t x_step, y_step;            // tokens to the next column and row, 0 where there is none
  int32_t first_tile, tiles_across;  // of queries that are all tokens
};

struct Tiling {
  int32_t count;    // tiles of an image
  int32_t queries;  // of a tile, at most
  bool by_level;
};

// Queries (or places in their order) first + row * stride + column, `across` in a row.
struct Tile {
  int32_t first, count, across, stride;

  SPARSEDET_INLINE int32_t query(int32_t i) const {
    const int32_t row = i / across;
    return first + row * stride + (i - row * across);
  }
};

SPARSEDET_INLINE int32_t tiles_of(int32_t size, int32_t tile) {
  return (size - 1) / tile + 1;
}

SPARSEDET_INLINE constexpr int32_t smaller(int32_t a, int32_t b) {
  return a < b ? a : b;
}

// Fills the table of levels from their (height, width) and returns the tiles that cover them.
inline int32_t lay_out_levels(const int64_t* spatial_shapes, int32_t levels, Level* table) {
  int32_t start = 0, tiles = 0;
  for (int32_t l = 0; l < levels; ++l) {
    const auto height = static_cast<int32_t>(spatial_shapes[2 * l]);
    const auto width = static_cast<int32_t>(spatial_shapes[2 * l + 1]);
    const int32_t across = tiles_of(width, kTileSide);
    table[l] = {height, width, start, width > 1 ? 1 : 0, height > 1 ? width : 0, tiles, across};
    start += height * width;
    tiles += across * tiles_of(height, kTileSide);
  }
  return tiles;
}

inline Tiling tiling_of(int32_t queries, int32_t tiles_of_levels, bool is_every_token,
                        int64_t images_and_heads) {
  if (is_every_token) return {tiles_of_levels, kTileQueries, true};
  const bool few = tiles_of(queries, kTileQueries) * images_and_heads < kFewBlocks;
  const int32_t size = few ? kTileQueries / 2 : kTileQueries;
  return {tiles_of(queries, size), size, false};
}

SPARSEDET_INLINE Tile tile_of(const Tiling& tiling, const Level* table, int32_t levels,
                              int32_t queries, int32_t index) {
  if (!tiling.by_level) {
    const int32_t first = index * tiling.queries;
    return {first, smaller(tiling.queries, queries - first), tiling.queries, tiling.queries};
  }
  int32_t l = 0;
  while (l + 1 < levels && table[l + 1].first_tile <= index) ++l;
  const Level& level = table[l];
  const int32_t inside = index - level.first_tile;
  const int32_t row = inside / level.tiles_across;
  const int32_t x = (inside - row * level.tiles_across) * kTileSide, y = row * kTileSide;
  const int32_t across = smaller(kTileSide, level.width - x);
  const int32_t down = smaller(kTileSide, level.height - y);
  return {level.start + y * level.width + x, down * across, across, level.width};
}

}  // namespace sparsedet::cuda
