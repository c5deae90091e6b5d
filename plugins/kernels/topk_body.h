// Stage 2 over a thread group: the last token's attention, the choice of rows.  Each function is the work of one block; README.md tells how they fit
// together.
#pragma once

#include "collectives.h"
#include "types.h"

namespace sts {

// Below any probability and any score, as in the function body.
constexpr float kNotVisual = -1e30f;

// Queries or keys of one head.
template <class T>
struct Head {
  T const* data;  // [rows, headDim]
  int64_t rows, headDim;
  bool aligned;  // for vectors

  STS_DEVICE T const* row(int64_t index) const { return data + index * headDim; }
};

template <class T>
struct Heads {
  T const* data;  // [batch, heads, rows, headDim]
  int64_t heads, rows, headDim;
  bool aligned;

  STS_DEVICE Head<T> head(int64_t request, int64_t index) const {
    return {data + (request * heads + index) * rows * headDim, rows, headDim, aligned};
  }
};

// The last row that the mask [rows] has, 0 if none; looked for from the end, where it usually is.  Alternates between the scratches.
template <class Group>
STS_DEVICE int64_t lastRealRow(Group& group, LeastScratch (&scratch)[2], int64_t const* mask, int64_t rows) {
  int turn = 0;
  for (int64_t end = rows; end > 0; end -= group.size(), turn ^= 1) {
    int64_t const row = end - 1 - group.rank();
    bool const real = row >= 0 && mask[row] != 0;
    uint32_t const fromEnd = groupLeast(group, {real ? static_cast<uint32_t>(rows - 1 - row) : kNone, 0}, scratch[turn]).bits;
    if (fromEnd != kNone) return rows - 1 - fromEnd;
  }
  return 0;
}

// ---- Logits of the last query ----

constexpr int kLogitRows = 32, kLogitLanes = 8, kLogitThreads = kLogitRows * kLogitLanes;

struct LogitShared {
  LeastScratch least[2];
};

// logits: [rows] of this head, kLogitRows of them; kNotVisual where the last row may not attend.  Every row's product is summed in the
// same order, so equal keys tie.
template <class Group, class T>
STS_DEVICE void logitBody(Group& group, LogitShared& shared, Head<T> const& query, Head<T> const& key, int64_t firstRow, int64_t const* mask,
                          float scale, float* logits) {
  constexpr int kLanes = kSmaller<kLogitLanes, Group::kWarp>, kMine = kLogitLanes / kLanes;
  int64_t const last = lastRealRow(group, shared.least, mask, key.rows);
  T const* const asked = query.row(last);
  int const lane = group.rank() % kLanes;
  for (int index = group.rank() / kLanes; index < kLogitRows; index += group.size() / kLanes) {
    int64_t const row = firstRow + index;
    bool const allowed = row <= last && mask[row] != 0;
    float partial[kMine] = {};
    if (allowed) {
      T const* const told = key.row(row);
      for (int m = 0; m < kMine; ++m) {
        for (int64_t start = (lane + m) * kVector; start < key.headDim; start += kLogitLanes * kVector) {
          Vector<T> const a = loadVector(asked, start, key.headDim, query.aligned);
          Vector<T> const b = loadVector(told, start, key.headDim, key.aligned);
          STS_UNROLL
          for (int e = 0; e < kVector; ++e) partial[m] = multiplyAdd(toFloat(a.element[e]), toFloat(b.element[e]), partial[m]);
        }
      }
    }
    float const product = laneSum<Group, kLogitLanes>(group, partial);  // by whole warps, whether allowed or not
    if (lane == 0 && row < key.rows) logits[row] = allowed ? product * scale : kNotVisual;
  }
}

// ---- Softmax of one head ----

struct HeadSoftmax {
  float largest, sum;  // probability of a row: e^(logit - largest) / sum
};

constexpr int kSoftmaxThreads = 512, kSoftmaxWarps = kSoftmaxThreads / 32;

struct SoftmaxShared {
  LeastScratch least;
  float sum[kSoftmaxWarps];
};

template <class Group>
STS_DEVICE void softmaxBody(Group& group, SoftmaxShared& shared, float const* logits, int64_t rows, HeadSoftmax* softmax) {
  constexpr int kMine = 32 / Group::kWarp;
  int const lane = group.rank() % Group::kWarp, warp = group.rank() / Group::kWarp, warps = group.size() / Group::kWarp;
  uint32_t least = kNone;
  for (int64_t row = group.rank(); row < rows; row += group.size()) {
    uint32_t const descending = ~ordered(logits[row]);
    if (descending < least) least = descending;
  }
  uint32_t const largestKey = ~groupLeast(group, {least, 0}, shared.least).bits;
  float const largest = floatOf(largestKey & 0x80000000u ? largestKey & 0x7fffffffu : ~largestKey);
  // kSoftmaxThreads partial sums, however many threads there are.
  for (int part = warp; part < kSoftmaxWarps; part += warps) {
    float partial[kMine] = {};
    STS_UNROLL
    for (int m = 0; m < kMine; ++m) {
      for (int64_t row = part * 32 + lane + m; row < rows; row += kSoftmaxThreads) partial[m] += exponential(logits[row] - largest);
    }
    float const sum = laneSum<Group, 32>(group, partial);
    if (lane == 0) shared.sum[part] = sum;
  }
  group.sync();
  if (group.rank() != 0) return;
  float sum = 0.0f;
  for (int part = 0; part < kSoftmaxWarps; ++part) sum += shared.sum[part];
  *softmax = {largest, sum};
}

// ---- Scores: mean over heads ----

constexpr int kScoreRows = 32, kScoreSlices = 8, kScoreThreads = kScoreRows * kScoreSlices;

struct ScoreShared {
  float sum[kScoreSlices][kScoreRows];
};

// logits: [heads, rows], softmax: [heads] of this request.  scores: [rows], kScoreRows of them, in an order-preserving integer form.
template <class Group>
STS_DEVICE void scoreBody(Group& group, ScoreShared& shared, float const* logits, HeadSoftmax const* softmax, int64_t heads, int64_t rows,
                          int64_t firstRow, bool const* visualMask, uint32_t* scores) {
  for (int unit = group.rank(); unit < kScoreThreads; unit += group.size()) {
    int const slice = unit / kScoreRows, index = unit % kScoreRows;
    float sum = 0.0f;
    if (firstRow + index < rows) {
      for (int64_t head = slice; head < heads; head += kScoreSlices) {
        HeadSoftmax const of = softmax[head];
        sum += divide(exponential(logits[head * rows + firstRow + index] - of.largest), of.sum);
      }
    }
    shared.sum[slice][index] = sum;
  }
  group.sync();
  for (int index = group.rank(); index < kScoreRows && firstRow + index < rows; index += group.size()) {
    float sum = 0.0f;
    for (int slice = 0; slice < kScoreSlices; ++slice) sum += shared.sum[slice][index];
    int64_t const row = firstRow + index;
    float const mean = divide(sum, static_cast<float>(heads));
    scores[row] = ordered(visualMask[row] ? (mean == mean ? mean : 0.0f) : kNotVisual);  // NaN has no place in an order
  }
}

// ---- The choice ----

constexpr int kChoiceThreads = 1024, kDigits = 256;

struct ChoiceShared {
  LeastScratch least[2];
  ScanScratch scan, before;
  uint32_t histogram[kDigits];
  uint32_t digit, above;
};

// The keep-th largest score, and how many rows with exactly that score are among the keep largest.
struct Threshold {
  uint32_t score, ties;
};

// Radix selection, a byte at a time from the highest; keep in 1 .. rows.
template <class Group>
STS_DEVICE Threshold selectThreshold(Group& group, ChoiceShared& shared, uint32_t const* scores, int64_t rows, uint32_t keep) {
  constexpr int kBins = kDigits / Group::kWarp;
  uint32_t prefix = 0, known = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int bin = group.rank(); bin < kDigits; bin += group.size()) shared.histogram[bin] = 0;
    group.sync();
    for (int64_t row = group.rank(); row < rows; row += group.size()) {
      uint32_t const score = scores[row];
      if ((score & known) == prefix) group.atomicAdd(shared.histogram + (score >> shift & 255u), 1);
    }
    group.sync();
    if (group.rank() < Group::kWarp) {
      // Lane 0 holds the highest digits.
      int const highest = kDigits - 1 - group.rank() * kBins;
      uint32_t sum = 0;
      for (int bin = 0; bin < kBins; ++bin) sum += shared.histogram[highest - bin];
      uint32_t above = sum;
      STS_UNROLL
      for (int distance = 1; distance < Group::kWarp; distance *= 2) {
        uint32_t const other = group.shuffleUp(above, distance);
        if (group.rank() >= distance) above += other;
      }
      above -= sum;
      for (int bin = 0; bin < kBins; ++bin) {
        uint32_t const count = shared.histogram[highest - bin];
        if (above < keep && keep <= above + count) {
          shared.digit = static_cast<uint32_t>(highest - bin);
          shared.above = above;
        }
        above += count;
      }
    }
    group.sync();
    prefix |= shared.digit << shift;
    known |= 255u << shift;
    keep -= shared.above;
  }
  return {prefix, keep};
}

// scores: [rows] of this request from scoreBody.  keptRows: [survivors]; lastRow: [1].
template <class Group>
STS_DEVICE void choiceBody(Group& group, ChoiceShared& shared, uint32_t const* scores, int64_t rows, int64_t visualKeep, int64_t survivors,
                           int64_t const* attentionMask, bool const* visualMask, int64_t* keptRows, int64_t* lastRow) {
  int64_t const last = lastRealRow(group, shared.least, attentionMask, rows);
  Threshold const threshold = selectThreshold(group, shared, scores, rows, static_cast<uint32_t>(visualKeep));
  // Each thread has some consecutive rows.  Low half: rows that survive whatever the ties are; high half: ties.
  int64_t const share = (rows + group.size() - 1) / group.size();
  int64_t const start = group.rank() * share, end = start + share < rows ? start + share : rows;
  auto const survives = [&](int64_t row) { return !visualMask[row] || scores[row] > threshold.score; };
  auto const ties = [&](int64_t row) { return visualMask[row] && scores[row] == threshold.score; };
  unsigned long long counted = 0;
  for (int64_t row = start; row < end; ++row) counted += (survives(row) ? 1ull : 0ull) | (ties(row) ? 1ull << 32 : 0ull);
  Scan const scan = groupScan(group, counted, shared.scan);
  auto const survivorsOf = [&](unsigned long long counts) {
    uint32_t const sure = static_cast<uint32_t>(counts), tied = static_cast<uint32_t>(counts >> 32);
    return int64_t{sure} + (tied < threshold.ties ? tied : threshold.ties);
  };
  int64_t const all = survivorsOf(scan.total);
  int64_t place = survivorsOf(scan.before);
  uint32_t tiesBefore = static_cast<uint32_t>(scan.before >> 32);
  unsigned long long beforeLast = 0;
  for (int64_t row = start; row < end; ++row) {
    bool const kept = survives(row) || (ties(row) && tiesBefore++ < threshold.ties);
    // Where fewer survive than there is room for, the dropped rows follow.
    int64_t const target = kept ? place : all + row - place;
    if (kept) ++place;
    if (target >= survivors) continue;
    keptRows[target] = row;
    if (row < last) ++beforeLast;
  }
  unsigned long long const total = groupScan(group, beforeLast, shared.before).total;
  if (group.rank() == 0) *lastRow = static_cast<int64_t>(total);
}

}  // namespace sts
