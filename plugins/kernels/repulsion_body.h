// Stage 1 over a thread group: the greedy choice, from a matrix (matrix/tile_body.h) or without one.  Each function is the work of one block; README.md
// tells how they fit together.
#pragma once

#include "collectives.h"
#include "types.h"

namespace sts {

// Larger than any potential and finite, as in the function body.
constexpr float kTaken = 1e30f;

template <class T>
struct Features {
  T const* data;  // [crops, rows, width]
  int64_t rows, width;
  bool aligned;  // for vectors

  STS_DEVICE T const* row(int64_t crop, int64_t index) const { return data + (crop * rows + index) * width; }
};

// Equation 4 for one pair.
STS_DEVICE float repulsion(float squaredDistance, float epsilon) { return reciprocal(squaredDistance + epsilon); }

STS_DEVICE uint32_t validRow(int64_t row, int64_t rows) { return static_cast<uint32_t>(row < 0 ? 0 : row < rows ? row : rows - 1); }

// ---- The greedy choice of one crop by one block, from a matrix ----

struct GreedyShared {
  LeastScratch least[2];
};

// matrix: [rows, rows] of this crop: repulsions, or with kGram the features' products.  Potentials stay in registers; a step reads one row.
template <class Group, int kRowsOfThread, bool kGram>
STS_DEVICE void greedyBody(Group& group, GreedyShared& shared, float const* matrix, int64_t rows, int64_t steps, int64_t first,
                           bool const* candidates, float epsilon, int64_t* chosen) {
  float potential[kRowsOfThread] = {}, added[kRowsOfThread] = {}, norm[kGram ? kRowsOfThread : 1] = {};
  STS_UNROLL
  for (int r = 0; r < kRowsOfThread; ++r) {
    int64_t const row = group.rank() + int64_t{r} * group.size();
    if (Group::kWarp == 1 && row >= rows) break;
    if (row >= rows) continue;
    potential[r] = candidates == nullptr || candidates[row] ? 0.0f : kTaken;
    if constexpr (kGram) norm[r] = matrix[row * rows + row];
  }
  uint32_t last = validRow(first, rows);
  if (group.rank() == 0) chosen[0] = last;
  for (int64_t step = 1; step < steps; ++step) {
    float const* const repelled = matrix + last * rows;
    float const lastNorm = kGram ? repelled[last] : 0.0f;
    // All loads before the first use: one latency a step, not one a row.
    STS_UNROLL
    for (int r = 0; r < kRowsOfThread; ++r) {
      int64_t const row = group.rank() + int64_t{r} * group.size();
      if (Group::kWarp == 1 && row >= rows) break;
      added[r] = repelled[row < rows ? row : rows - 1];
    }
    Least least{kNone, kNone};
    STS_UNROLL
    for (int r = 0; r < kRowsOfThread; ++r) {
      int64_t const row = group.rank() + int64_t{r} * group.size();
      if (Group::kWarp == 1 && row >= rows) break;
      if constexpr (kGram) {
        float const distance = norm[r] + lastNorm - 2.0f * added[r];
        added[r] = row == last ? kTaken : repulsion(distance > 0.0f ? distance : 0.0f, epsilon);
      }
      potential[r] += added[r];
      // Potentials are not negative: their bits order as they do.  Rows beyond the last one are never chosen.
      least.take(row < rows ? bitsOf(potential[r]) : kNone, row < rows ? static_cast<uint32_t>(row) : kNone);
    }
    last = groupLeast(group, least, shared.least[step % 2]).index;
    if (group.rank() == 0) chosen[step] = last;
  }
}

// ---- One greedy step of one crop by many blocks, from the features ----

constexpr int kRowsOfWarp = 4, kStepThreads = 256, kStepRows = 64, kGramStepRows = kStepThreads;

STS_DEVICE unsigned long long packed(Least least) { return static_cast<unsigned long long>(least.bits) << 32 | least.index; }
STS_DEVICE uint32_t rowOf(unsigned long long packedLeast) { return static_cast<uint32_t>(packedLeast); }

// distance[r]: from row firstRow + r to the reference, by one warp; the reference has the features' width.
template <class Group, class T, class R>
STS_DEVICE void squaredDistances(Group& group, Features<T> const& x, int64_t crop, int64_t firstRow, R const* reference,
                                 float (&distance)[kRowsOfWarp]) {
  constexpr int kLanes = 32, kMine = kLanes / Group::kWarp;
  float partial[kRowsOfWarp][kMine] = {};
  T const* row[kRowsOfWarp];
  STS_UNROLL
  for (int r = 0; r < kRowsOfWarp; ++r) row[r] = x.row(crop, firstRow + r < x.rows ? firstRow + r : x.rows - 1);
  STS_UNROLL
  for (int m = 0; m < kMine; ++m) {
    int const lane = group.rank() % Group::kWarp + m;
    for (int64_t start = lane * kVector; start < x.width; start += kLanes * kVector) {
      Vector<R> const to = loadVector(reference, start, x.width, x.aligned);
      STS_UNROLL
      for (int r = 0; r < kRowsOfWarp; ++r) {
        Vector<T> const from = loadVector(row[r], start, x.width, x.aligned);
        STS_UNROLL
        for (int e = 0; e < kVector; ++e) {
          float const difference = toFloat(from.element[e]) - toFloat(to.element[e]);
          partial[r][m] = multiplyAdd(difference, difference, partial[r][m]);
        }
      }
    }
  }
  STS_UNROLL
  for (int r = 0; r < kRowsOfWarp; ++r) distance[r] = laneSum<Group, kLanes>(group, partial[r]);
}

// One block's share of a crop's potentials [rows] and of the keys [steps] of the choices, at the beginning.
template <class Group>
STS_DEVICE void startBody(Group& group, int64_t firstIndex, int64_t rows, int64_t steps, int64_t first, bool const* candidates, float* potential,
                          unsigned long long* keys) {
  int64_t const index = firstIndex + group.rank();
  for (int64_t i = index; i < firstIndex + kStepThreads; i += group.size()) {
    if (i < rows) potential[i] = candidates == nullptr || candidates[i] ? 0.0f : kTaken;
    if (i < steps) keys[i] = i == 0 ? validRow(first, rows) : ~0ull;
  }
}

// Adds the repulsion of the last choice to the potentials of kStepRows rows and offers their least one as the choice of this step.
template <class Group, class T>
STS_DEVICE void stepBody(Group& group, LeastScratch& shared, Features<T> const& x, int64_t crop, int64_t firstRow, int64_t step, float epsilon,
                         float* potential, unsigned long long* keys) {
  int const lane = group.rank() % Group::kWarp, warp = group.rank() / Group::kWarp, warps = group.size() / Group::kWarp;
  int64_t const last = rowOf(keys[step - 1]);
  Least least{kNone, kNone};
  for (int part = warp; part < kStepRows / kRowsOfWarp; part += warps) {
    int64_t const start = firstRow + part * kRowsOfWarp;
    float distance[kRowsOfWarp];
    squaredDistances(group, x, crop, start, x.row(crop, last), distance);
    STS_UNROLL
    for (int r = 0; r < kRowsOfWarp; ++r) {
      int64_t const row = start + r;
      if (r % Group::kWarp != lane || row >= x.rows) continue;
      potential[row] += row == last ? kTaken : repulsion(distance[r], epsilon);
      least.take(bitsOf(potential[row]), static_cast<uint32_t>(row));
    }
  }
  least = groupLeast(group, least, shared);
  if (group.rank() == 0) group.atomicMin(keys + step, packed(least));
}

// The same from products, a row a thread.
template <class Group>
STS_DEVICE void gramStepBody(Group& group, LeastScratch& shared, float const* gram, int64_t rows, int64_t firstRow, int64_t step, float epsilon,
                             float* potential, unsigned long long* keys) {
  int64_t const last = rowOf(keys[step - 1]);
  float const lastNorm = gram[last * rows + last];
  Least least{kNone, kNone};
  for (int64_t row = firstRow + group.rank(); row < firstRow + kGramStepRows && row < rows; row += group.size()) {
    float const distance = gram[row * rows + row] + lastNorm - 2.0f * gram[last * rows + row];
    potential[row] += row == last ? kTaken : repulsion(distance > 0.0f ? distance : 0.0f, epsilon);
    least.take(bitsOf(potential[row]), static_cast<uint32_t>(row));
  }
  least = groupLeast(group, least, shared);
  if (group.rank() == 0) group.atomicMin(keys + step, packed(least));
}

// ---- The anchor: the candidate closest to the mean of the candidates ----

constexpr int kMeanColumns = 32, kMeanSlices = 8, kMeanThreads = kMeanColumns * kMeanSlices;

struct MeanShared {
  double sum[kMeanSlices][kMeanColumns];
  int32_t count[kMeanSlices];
};

// mean: [width] of this crop, kMeanColumns of them by one block.
template <class Group, class T>
STS_DEVICE void meanBody(Group& group, MeanShared& shared, Features<T> const& x, int64_t crop, int64_t firstColumn, bool const* candidates,
                         float* mean) {
  for (int unit = group.rank(); unit < kMeanThreads; unit += group.size()) {
    int const slice = unit / kMeanColumns;
    int64_t const column = firstColumn + unit % kMeanColumns;
    double sum = 0.0;
    int32_t count = 0;
    for (int64_t row = slice; row < x.rows; row += kMeanSlices) {
      if (candidates != nullptr && !candidates[row]) continue;
      if (column < x.width) sum += static_cast<double>(toFloat(x.row(crop, row)[column]));
      ++count;
    }
    shared.sum[slice][unit % kMeanColumns] = sum;
    if (unit % kMeanColumns == 0) shared.count[slice] = count;
  }
  group.sync();
  for (int unit = group.rank(); unit < kMeanColumns; unit += group.size()) {
    double sum = 0.0;
    int32_t count = 0;
    for (int slice = 0; slice < kMeanSlices; ++slice) {
      sum += shared.sum[slice][unit];
      count += shared.count[slice];
    }
    if (firstColumn + unit < x.width) mean[firstColumn + unit] = static_cast<float>(sum / (count > 0 ? count : 1));
  }
}

// Offers the closest one of kStepRows rows.
template <class Group, class T>
STS_DEVICE void anchorBody(Group& group, LeastScratch& shared, Features<T> const& x, int64_t crop, int64_t firstRow, bool const* candidates,
                           float const* mean, unsigned long long* anchor) {
  int const lane = group.rank() % Group::kWarp, warp = group.rank() / Group::kWarp, warps = group.size() / Group::kWarp;
  Least least{kNone, kNone};
  for (int part = warp; part < kStepRows / kRowsOfWarp; part += warps) {
    int64_t const start = firstRow + part * kRowsOfWarp;
    float distance[kRowsOfWarp];
    squaredDistances(group, x, crop, start, mean, distance);
    STS_UNROLL
    for (int r = 0; r < kRowsOfWarp; ++r) {
      int64_t const row = start + r;
      if (r % Group::kWarp != lane || row >= x.rows) continue;
      least.take(bitsOf(candidates == nullptr || candidates[row] ? distance[r] : kTaken), static_cast<uint32_t>(row));
    }
  }
  least = groupLeast(group, least, shared);
  if (group.rank() == 0) group.atomicMin(anchor, packed(least));
}

}  // namespace sts
