// Which of the two tiles fills a device better.
#pragma once

#include "../workspace.h"
#include "tile_body.h"

namespace sts {

// Tiles of the upper triangle of one crop.
inline int64_t tilesOf(int64_t rows, int64_t tileRows) {
  int64_t const tiles = ceilDivide(rows, tileRows);
  return tiles * (tiles + 1) / 2;
}

// Pairs that the busiest multiprocessor computes.  Its blocks share its arithmetic: two take twice as long as one, whether they are resident together or
// not.
inline int64_t busiestPairs(int64_t crops, int64_t rows, int64_t tileRows, int64_t multiprocessors) {
  return ceilDivide(tilesOf(rows, tileRows) * crops, multiprocessors) * tileRows * tileRows;
}

// 24 or 32.  Narrow tiles read a third more for every pair, so they must save a tenth.
inline int64_t chooseTile(int64_t crops, int64_t rows, int64_t multiprocessors) {
  if (multiprocessors < 1) return WideTile::kRows;
  int64_t const wide = busiestPairs(crops, rows, WideTile::kRows, multiprocessors);
  int64_t const narrow = busiestPairs(crops, rows, NarrowTile::kRows, multiprocessors);
  return narrow * 10 <= wide * 9 ? NarrowTile::kRows : WideTile::kRows;
}

}  // namespace sts
