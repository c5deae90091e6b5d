// Stage 1 on one thread.
#include "../matrix/tile_body.h"
#include "../matrix/tile_size.h"
#include "../repulsion_body.h"
#include "../workspace.h"

namespace sts {
namespace {

int64_t firstOf(int64_t const* first, unsigned long long const* anchors, int64_t crop) {
  return first != nullptr ? first[crop] : static_cast<int64_t>(rowOf(anchors[crop]));
}

template <class T>
void findAnchors(RepulsionSelectShape const& shape, Features<T> const& x, bool const* candidates, RepulsionParts const& parts) {
  SerialGroup group;
  for (int64_t crop = 0; crop < shape.crops; ++crop) {
    bool const* const own = candidates == nullptr ? nullptr : candidates + crop * shape.rows;
    float* const mean = parts.mean + crop * shape.width;
    MeanShared shared;
    for (int64_t column = 0; column < shape.width; column += kMeanColumns) meanBody(group, shared, x, crop, column, own, mean);
    LeastScratch scratch;
    parts.anchors[crop] = ~0ull;
    for (int64_t row = 0; row < shape.rows; row += kStepRows) anchorBody(group, scratch, x, crop, row, own, mean, parts.anchors + crop);
  }
}

void start(RepulsionSelectShape const& shape, int64_t crop, int64_t first, bool const* candidates, RepulsionParts const& parts) {
  SerialGroup group;
  for (int64_t index = 0; index < shape.rows; index += kStepThreads)
    startBody(group, index, shape.rows, shape.steps, first, candidates, parts.potential + crop * shape.rows, parts.keys + crop * shape.steps);
}

void finish(RepulsionSelectShape const& shape, int64_t crop, RepulsionParts const& parts, int64_t* chosen) {
  for (int64_t step = 0; step < shape.steps; ++step) chosen[step] = rowOf(parts.keys[crop * shape.steps + step]);
}

template <class T>
void selectTyped(RepulsionSelectShape const& shape, void const* features, int64_t const* first, bool const* candidates, float epsilon,
                 int64_t* chosen, RepulsionParts const& parts) {
  SerialGroup group;
  Features<T> const x{static_cast<T const*>(features), shape.rows, shape.width, vectorsAligned<T>(features, shape.width)};
  if (first == nullptr) findAnchors(shape, x, candidates, parts);
  for (int64_t crop = 0; crop < shape.crops; ++crop) {
    bool const* const own = candidates == nullptr ? nullptr : candidates + crop * shape.rows;
    int64_t const anchor = firstOf(first, parts.anchors, crop);
    int64_t* const ownChosen = chosen + crop * shape.steps;
    if (shape.rows <= kMatrixRows) {
      float* const repulsions = parts.repulsions + crop * shape.rows * shape.rows;
      int64_t const tiles = tilesOf(shape.rows, WideTile::kRows);
      TileShared<WideTile> tileShared;
      for (int64_t i = 0; i < tiles; ++i) tileBody<WideTile>(group, tileShared, x, crop, TileIndex::of(i), epsilon, repulsions);
      GreedyShared greedyShared;
      greedyBody<SerialGroup, kMatrixRows, false>(group, greedyShared, repulsions, shape.rows, shape.steps, anchor, own, epsilon, ownChosen);
      continue;
    }
    start(shape, crop, anchor, own, parts);
    LeastScratch scratch;
    for (int64_t step = 1; step < shape.steps; ++step) {
      for (int64_t row = 0; row < shape.rows; row += kStepRows)
        stepBody(group, scratch, x, crop, row, step, epsilon, parts.potential + crop * shape.rows, parts.keys + crop * shape.steps);
    }
    finish(shape, crop, parts, ownChosen);
  }
}

}  // namespace

size_t repulsionSelectWorkspace(RepulsionSelectShape const& shape) { return valid(shape) ? RepulsionParts(shape, nullptr).size : 0; }

Status repulsionSelectHost(RepulsionSelectShape const& shape, DataType type, void const* features, int64_t const* first, bool const* candidates,
                           float epsilon, int64_t* chosen, void* workspace) {
  if (!valid(shape) || !knownType(type) || !validEpsilon(epsilon) || features == nullptr || chosen == nullptr || workspace == nullptr)
    return Status::kInvalid;
  RepulsionParts const parts(shape, workspace);
  switch (type) {
    case DataType::kFloat: selectTyped<float>(shape, features, first, candidates, epsilon, chosen, parts); break;
    case DataType::kHalf: selectTyped<Half>(shape, features, first, candidates, epsilon, chosen, parts); break;
    case DataType::kBfloat16: selectTyped<Bfloat16>(shape, features, first, candidates, epsilon, chosen, parts); break;
  }
  return Status::kOk;
}

Status repulsionSelectFromGramHost(RepulsionSelectShape const& shape, float const* gram, int64_t const* first, bool const* candidates, float epsilon,
                                   int64_t* chosen, void* workspace) {
  if (!valid(shape) || !validEpsilon(epsilon) || gram == nullptr || first == nullptr || chosen == nullptr || workspace == nullptr)
    return Status::kInvalid;
  RepulsionParts const parts(shape, workspace);
  SerialGroup group;
  for (int64_t crop = 0; crop < shape.crops; ++crop) {
    bool const* const own = candidates == nullptr ? nullptr : candidates + crop * shape.rows;
    float const* const matrix = gram + crop * shape.rows * shape.rows;
    int64_t* const ownChosen = chosen + crop * shape.steps;
    if (shape.rows <= kMatrixRows) {
      GreedyShared shared;
      greedyBody<SerialGroup, kMatrixRows, true>(group, shared, matrix, shape.rows, shape.steps, first[crop], own, epsilon, ownChosen);
      continue;
    }
    start(shape, crop, first[crop], own, parts);
    LeastScratch scratch;
    for (int64_t step = 1; step < shape.steps; ++step) {
      for (int64_t row = 0; row < shape.rows; row += kGramStepRows)
        gramStepBody(group, scratch, matrix, shape.rows, row, step, epsilon, parts.potential + crop * shape.rows, parts.keys + crop * shape.steps);
    }
    finish(shape, crop, parts, ownChosen);
  }
  return Status::kOk;
}

}  // namespace sts
