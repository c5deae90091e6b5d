// Which sizes are valid, and what of the workspace belongs to what: the same for device and host.
#pragma once

#include <cmath>

#include "last_token_topk.h"
#include "repulsion_select.h"
#include "topk_body.h"

namespace sts {

// Up to this many rows all repulsions of a crop are computed beforehand (4 bytes a pair); with more, each step computes its own.
constexpr int64_t kMatrixRows = 4096;

// Hands out consecutive parts, each aligned for any access.
class Parts {
 public:
  explicit Parts(void* base) : mBase(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    T* const part = mBase == nullptr ? nullptr : reinterpret_cast<T*>(mBase + mSize);
    mSize += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return part;
  }

  size_t size() const { return mSize; }

 private:
  char* mBase;
  size_t mSize = 0;
};

inline bool within(int64_t value, int64_t most) { return 1 <= value && value <= most; }

inline bool knownType(DataType type) { return type == DataType::kFloat || type == DataType::kHalf || type == DataType::kBfloat16; }

inline int64_t ceilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool valid(RepulsionSelectShape const& shape) {
  return within(shape.crops, kMaxBatch) && within(shape.rows, kMaxRows) && within(shape.width, kMaxWidth) && within(shape.steps, shape.rows);
}

inline bool validEpsilon(float epsilon) { return epsilon > 0.0f && std::isfinite(epsilon); }

struct RepulsionParts {
  unsigned long long* anchors;  // [crops]
  float* mean;                  // [crops, width]
  float* repulsions;            // [crops, rows, rows], up to kMatrixRows
  float* potential;             // [crops, rows], beyond
  unsigned long long* keys;     // [crops, steps], beyond
  size_t size;

  RepulsionParts(RepulsionSelectShape const& shape, void* workspace) {
    Parts parts(workspace);
    int64_t const matrixRows = shape.rows < kMatrixRows ? shape.rows : kMatrixRows, beyond = shape.rows > kMatrixRows ? shape.crops : 0;
    anchors = parts.take<unsigned long long>(shape.crops);
    mean = parts.take<float>(shape.crops * shape.width);
    repulsions = parts.take<float>(shape.crops * matrixRows * matrixRows);
    potential = parts.take<float>(beyond * shape.rows);
    keys = parts.take<unsigned long long>(beyond * shape.steps);
    size = parts.size();
  }
};

// Blocks of a launch are counted in 31 bits.
inline int64_t logitBlocks(LastTokenTopKShape const& shape) { return ceilDivide(shape.rows, kLogitRows) * shape.heads * shape.batch; }

inline bool valid(LastTokenTopKShape const& shape) {
  return within(shape.batch, kMaxBatch) && within(shape.heads, kMaxHeads) && within(shape.kvHeads, shape.heads) && shape.heads % shape.kvHeads == 0 &&
         within(shape.rows, kMaxRows) && within(shape.headDim, kMaxWidth) && within(shape.visual, shape.rows) &&
         within(shape.visualKeep, shape.visual) && logitBlocks(shape) <= INT32_MAX;
}

struct LastTokenParts {
  float* logits;         // [batch, heads, rows]
  HeadSoftmax* softmax;  // [batch, heads]
  uint32_t* scores;      // [batch, rows]
  size_t size;

  LastTokenParts(LastTokenTopKShape const& shape, void* workspace) {
    Parts parts(workspace);
    logits = parts.take<float>(shape.batch * shape.heads * shape.rows);
    softmax = parts.take<HeadSoftmax>(shape.batch * shape.heads);
    scores = parts.take<uint32_t>(shape.batch * shape.rows);
    size = parts.size();
  }
};

}  // namespace sts
