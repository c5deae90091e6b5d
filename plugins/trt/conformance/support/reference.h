// The two operators written down plainly, in double precision: no part of the kernels is used.
#pragma once

#include <cstdint>
#include <vector>

#include "operators.h"

namespace sts::conformance {

struct Selection {
  std::vector<std::vector<int64_t>> outputs;  // one per output, row-major
  double margin;                              // least relative distance between what was chosen and the next best
};

// features: [crops, rows, width]; first: [crops]; candidates: [crops, rows]
Selection repulsionReference(Sizes const& sizes, std::vector<double> const& features, std::vector<int64_t> const& first,
                             std::vector<uint8_t> const& candidates, double epsilon);

// query: [batch, heads, rows, head_dim]; key: [batch, kv_heads, rows, head_dim]; attentionMask, visualMask: [batch, rows]
Selection topkReference(Sizes const& sizes, std::vector<double> const& query, std::vector<double> const& key,
                        std::vector<int64_t> const& attentionMask, std::vector<uint8_t> const& visualMask, double scale);

}  // namespace sts::conformance
