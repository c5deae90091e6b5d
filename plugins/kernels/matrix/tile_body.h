// The matrix of all pairs' repulsions over a thread group, tile by tile.
#pragma once

#include <cmath>

#include "../repulsion_body.h"

namespace sts {

constexpr int kSlab = 64;   // columns of the features in shared memory
constexpr int kSlices = 4;  // of a slab, each summed by its own threads
constexpr int kSlice = kSlab / kSlices;

// A block's pairs: kRows rows by as many columns, kPairRows by kPairColumns of them a thread, and that in every slice.
template <int rows, int pairRows, int pairColumns>
struct Tile {
  static constexpr int kRows = rows, kPairRows = pairRows, kPairColumns = pairColumns;
  static constexpr int kAcross = kRows / kPairColumns, kSliceThreads = kRows / kPairRows * kAcross, kThreads = kSlices * kSliceThreads;
  static constexpr int kVectors = kRows * kSlab / kVector;             // that a slab has of the rows, and of the columns
  static constexpr int kLoads = 2 * kVectors / kThreads;               // of a thread
  static constexpr int kStride = kRows + (pairRows % 4 == 0 ? 4 : 6);  // every thread's rows are aligned in shared memory
  static_assert(kRows % kPairRows == 0 && kRows % kPairColumns == 0 && kThreads % 32 == 0 && kLoads * kThreads == 2 * kVectors);
};

using WideTile = Tile<32, 4, 4>;
using NarrowTile = Tile<24, 6, 3>;  // a slice is one warp

// Consecutive floats, read at once as far as their alignment allows.
template <int count>
struct alignas(count % 4 == 0   ? 16
               : count % 2 == 0 ? 8
                                : 4) Run {
  float element[count];

  STS_DEVICE static Run at(float const* aligned) { return *reinterpret_cast<Run const*>(aligned); }
};

template <class Tile>
struct TileShared {
  union {
    alignas(16) float slab[2][kSlab][Tile::kStride];  // of the rows and of the columns, transposed
    float partial[kSlices][Tile::kRows][Tile::kRows + 1];
  };
};

// The i-th tile of the upper triangle, column by column.
struct TileIndex {
  int64_t row, column;

  STS_DEVICE static TileIndex of(int64_t i) {
    int64_t column = static_cast<int64_t>((sqrtf(8.0f * static_cast<float>(i) + 1.0f) - 1.0f) * 0.5f);
    while (column * (column + 1) / 2 > i) --column;
    while ((column + 1) * (column + 2) / 2 <= i) ++column;
    return {i - column * (column + 1) / 2, column};
  }
};

// repulsions: [rows, rows] of this crop; the tile and its mirror image are written, the diagonal is kTaken.
//
// Distances are sums of squared differences, not norms minus products: no cancellation, exactly 0 for duplicates, and the same bits for (i, j) and
// (j, i).  Every pair is summed in the same order, whatever its tile: by slices, and these as a tree; so equal pairs tie.
template <class Tile, class Group, class T>
STS_DEVICE void tileBody(Group& group, TileShared<Tile>& shared, Features<T> const& x, int64_t crop, TileIndex tile, float epsilon,
                         float* repulsions) {
  constexpr int kRows = Tile::kRows, kPairRows = Tile::kPairRows, kPairColumns = Tile::kPairColumns;
  constexpr int kUnits = Group::kWarp == 1 ? Tile::kThreads : 1;  // what one thread does of the block's work
  int64_t const firstRow = tile.row * kRows, firstColumn = tile.column * kRows;
  Vector<T> ahead[kUnits][Tile::kLoads];
  float sum[kUnits][kPairRows][kPairColumns] = {};

  // The load-th vector of a unit: of the rows (0) or the columns (1), of which one, and where it begins in the slab.
  struct Place {
    int side, index, k;
  };
  auto const place = [](int unit, int load) {
    int const number = unit + load * Tile::kThreads;
    int const side = Tile::kVectors % Tile::kThreads == 0 ? load * Tile::kThreads / Tile::kVectors : number / Tile::kVectors;
    int const own = number - side * Tile::kVectors;
    return Place{side, own % kRows, own / kRows * kVector};
  };
  auto const load = [&](int64_t start) {
    STS_UNROLL
    for (int u = 0; u < kUnits; ++u) {
      STS_UNROLL
      for (int l = 0; l < Tile::kLoads; ++l) {
        Place const from = place(group.rank() + u, l);
        int64_t const row = (from.side == 0 ? firstRow : firstColumn) + from.index;
        // Rows beyond the last one are computed on some valid row and not written.
        ahead[u][l] = loadVector(x.row(crop, row < x.rows ? row : 0), start + from.k, x.width, x.aligned);
      }
    }
  };

  load(0);
  for (int64_t start = 0; start < x.width; start += kSlab) {
    STS_UNROLL
    for (int u = 0; u < kUnits; ++u) {
      STS_UNROLL
      for (int l = 0; l < Tile::kLoads; ++l) {
        Place const to = place(group.rank() + u, l);
        STS_UNROLL
        for (int e = 0; e < kVector; ++e) shared.slab[to.side][to.k + e][to.index] = toFloat(ahead[u][l].element[e]);
      }
    }
    group.sync();
    if (start + kSlab < x.width) load(start + kSlab);
    STS_UNROLL
    for (int u = 0; u < kUnits; ++u) {
      int const unit = group.rank() + u, slice = unit / Tile::kSliceThreads;
      int const own = unit % Tile::kSliceThreads, atRow = own / Tile::kAcross * kPairRows, atColumn = own % Tile::kAcross * kPairColumns;
      STS_UNROLL
      for (int k = slice * kSlice; k < (slice + 1) * kSlice; ++k) {
        if (Group::kWarp == 1 && start + k >= x.width) break;  // zeros: they add nothing
        auto const row = Run<kPairRows>::at(shared.slab[0][k] + atRow);
        auto const column = Run<kPairColumns>::at(shared.slab[1][k] + atColumn);
        STS_UNROLL
        for (int i = 0; i < kPairRows; ++i) {
          STS_UNROLL
          for (int j = 0; j < kPairColumns; ++j) {
            float const difference = row.element[i] - column.element[j];
            sum[u][i][j] = multiplyAdd(difference, difference, sum[u][i][j]);
          }
        }
      }
    }
    group.sync();
  }

  STS_UNROLL
  for (int u = 0; u < kUnits; ++u) {
    int const unit = group.rank() + u, slice = unit / Tile::kSliceThreads;
    int const own = unit % Tile::kSliceThreads, atRow = own / Tile::kAcross * kPairRows, atColumn = own % Tile::kAcross * kPairColumns;
    STS_UNROLL
    for (int i = 0; i < kPairRows; ++i) {
      STS_UNROLL
      for (int j = 0; j < kPairColumns; ++j) shared.partial[slice][atRow + i][atColumn + j] = sum[u][i][j];
    }
  }
  group.sync();
  auto const value = [&](int i, int j) {
    float const distance = (shared.partial[0][i][j] + shared.partial[1][i][j]) + (shared.partial[2][i][j] + shared.partial[3][i][j]);
    return firstRow + i == firstColumn + j ? kTaken : repulsion(distance, epsilon);
  };
  for (int pair = group.rank(); pair < kRows * kRows; pair += group.size()) {
    int const slow = pair / kRows, fast = pair % kRows;
    if (firstRow + slow < x.rows && firstColumn + fast < x.rows) repulsions[(firstRow + slow) * x.rows + firstColumn + fast] = value(slow, fast);
    if (tile.row != tile.column && firstColumn + slow < x.rows && firstRow + fast < x.rows)
      repulsions[(firstColumn + slow) * x.rows + firstRow + fast] = value(fast, slow);
  }
}

}  // namespace sts
