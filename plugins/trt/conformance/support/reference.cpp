#include "reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace sts::conformance {
namespace {

constexpr double kTaken = 1e30;

double squaredDistance(double const* a, double const* b, int64_t width) {
  double sum = 0;
  for (int64_t i = 0; i < width; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

// The last real row's attention to every row, mean over heads.
std::vector<double> attention(Sizes const& sizes, int64_t request, int64_t last, std::vector<double> const& query, std::vector<double> const& key,
                              int64_t const* attentionMask, double scale) {
  int64_t const heads = sizes.at("heads"), kvHeads = sizes.at("kv_heads"), rows = sizes.at("rows"), width = sizes.at("head_dim");
  std::vector<double> mean(static_cast<size_t>(rows), 0.0);
  for (int64_t head = 0; head < heads; ++head) {
    double const* const q = query.data() + ((request * heads + head) * rows + last) * width;
    double const* const k = key.data() + (request * kvHeads + head / (heads / kvHeads)) * rows * width;
    std::vector<double> weights(static_cast<size_t>(rows), 0.0);
    double sum = 0;
    for (int64_t row = 0; row <= last; ++row) {
      if (attentionMask[row] == 0) continue;
      double const weight = std::exp(scale * std::inner_product(q, q + width, k + row * width, 0.0));
      weights[static_cast<size_t>(row)] = weight;
      sum += weight;
    }
    for (size_t row = 0; row < weights.size(); ++row) mean[row] += weights[row] / sum / static_cast<double>(heads);
  }
  return mean;
}

}  // namespace

Selection repulsionReference(Sizes const& sizes, std::vector<double> const& features, std::vector<int64_t> const& first,
                             std::vector<uint8_t> const& candidates, double epsilon) {
  int64_t const crops = sizes.at("crops"), rows = sizes.at("rows"), width = sizes.at("width"), steps = sizes.at("steps");
  Selection result{{{}}, std::numeric_limits<double>::infinity()};
  for (int64_t crop = 0; crop < crops; ++crop) {
    double const* const own = features.data() + crop * rows * width;
    std::vector<double> potential(static_cast<size_t>(rows));
    for (int64_t row = 0; row < rows; ++row) potential[static_cast<size_t>(row)] = candidates[static_cast<size_t>(crop * rows + row)] ? 0.0 : kTaken;
    int64_t last = first[static_cast<size_t>(crop)];
    result.outputs[0].push_back(last);
    for (int64_t step = 1; step < steps; ++step) {
      for (int64_t row = 0; row < rows; ++row) {
        potential[static_cast<size_t>(row)] += row == last ? kTaken : 1.0 / (squaredDistance(own + row * width, own + last * width, width) + epsilon);
      }
      last = std::min_element(potential.begin(), potential.end()) - potential.begin();
      result.outputs[0].push_back(last);
      for (int64_t row = 0; row < rows; ++row) {
        double const best = potential[static_cast<size_t>(last)];
        if (row != last) result.margin = std::min(result.margin, (potential[static_cast<size_t>(row)] - best) / best);
      }
    }
  }
  return result;
}

Selection topkReference(Sizes const& sizes, std::vector<double> const& query, std::vector<double> const& key,
                        std::vector<int64_t> const& attentionMask, std::vector<uint8_t> const& visualMask, double scale) {
  int64_t const batch = sizes.at("batch"), rows = sizes.at("rows");
  auto const keep = static_cast<size_t>(sizes.at("visual_keep"));
  Selection result{{{}, {}}, std::numeric_limits<double>::infinity()};
  for (int64_t request = 0; request < batch; ++request) {
    int64_t const* const mask = attentionMask.data() + request * rows;
    uint8_t const* const visual = visualMask.data() + request * rows;
    int64_t last = 0;
    for (int64_t row = 0; row < rows; ++row) last = mask[row] != 0 ? row : last;
    std::vector<double> const scores = attention(sizes, request, last, query, key, mask, scale);

    std::vector<int64_t> ranked;
    for (int64_t row = 0; row < rows; ++row) {
      if (visual[row] != 0) ranked.push_back(row);
    }
    auto const score = [&](int64_t row) { return scores[static_cast<size_t>(row)]; };
    std::stable_sort(ranked.begin(), ranked.end(), [&](int64_t a, int64_t b) { return score(a) > score(b); });
    if (ranked.size() > keep) {
      result.margin = std::min(result.margin, (score(ranked[keep - 1]) - score(ranked[keep])) / score(ranked[keep - 1]));
      ranked.resize(keep);
    }
    int64_t before = 0;
    for (int64_t row = 0; row < rows; ++row) {
      if (visual[row] != 0 && std::find(ranked.begin(), ranked.end(), row) == ranked.end()) continue;
      result.outputs[0].push_back(row);
      before += row < last;
    }
    result.outputs[1].push_back(before);
  }
  return result;
}

}  // namespace sts::conformance
