// One call of stage 1, on the side that is checked, and what it should choose.
#pragma once

#include "../repulsion_select.h"
#include "inputs.h"

namespace {

constexpr float kEpsilon = 1e-6f;

// compute-sanitizer gets every kernel once: both tiles.
std::vector<Way> repulsionWays(int64_t rows) {
  std::vector<Way> ways;
  if (!options.hostOnly && rows <= 4096) ways = {{" tile 24", {24, true}}, {" tile 32, ordinary launches", {32, false}}};
  if (!options.hostOnly && rows > 4096 && !options.checksOnly) ways = {{" ordinary launches", {0, false}}};
  if (ways.empty() || !options.checksOnly) ways.push_back({"", {}});
  return ways;
}

class RepulsionCase {
 public:
  // masked: every third row is no candidate.  anchored: it begins with a given row, otherwise with the one closest to the mean.
  RepulsionCase(sts::RepulsionSelectShape const& shape, DataType type, Kind kind, bool masked, bool anchored, uint64_t seed)
      : name("repulsion " + std::to_string(shape.crops) + "x" + std::to_string(shape.rows) + "x" + std::to_string(shape.width) + "/" +
             std::to_string(shape.steps) + " " + nameOf(type) + (masked ? " masked" : "") + (anchored ? "" : " mean") + nameOf(kind)),
        mShape(shape),
        mType(type),
        mMasked(masked),
        mAnchored(anchored),
        mFeatures(values(type, kind, shape.crops, shape.rows, shape.width, seed)),
        mFirst(static_cast<size_t>(shape.crops)),
        mCandidates(static_cast<size_t>(shape.crops * shape.rows), 1),
        mX(mFeatures.size(), mFeatures.data()),
        mAnchor(mFirst.size() * 8, firstRows()),
        mMask(mCandidates.size(), candidates()),
        chosen(static_cast<size_t>(shape.crops * shape.steps) * 8) {}

  Status enqueue(Way const& way, Buffer& workspace, cudaStream_t stream) const {
    auto const* const first = mAnchored ? static_cast<int64_t const*>(mAnchor.get()) : nullptr;
    auto const* const candidates = mMasked ? static_cast<bool const*>(mMask.get()) : nullptr;
    auto* const out = static_cast<int64_t*>(chosen.get());
#if defined(__CUDACC__)
    if (!options.hostOnly)
      return sts::repulsionSelect(mShape, mType, mX.get(), first, candidates, kEpsilon, out, workspace.get(), stream, way.launching);
#endif
    static_cast<void>(stream);
    static_cast<void>(way);
    return sts::repulsionSelectHost(mShape, mType, mX.get(), first, candidates, kEpsilon, out, workspace.get());
  }

  // What the host chooses.
  std::vector<int64_t> expected() const {
    std::vector<int64_t> all(static_cast<size_t>(mShape.crops * mShape.steps));
    Scratch scratch(workspaceSize());
    auto const* const candidates = mMasked ? reinterpret_cast<bool const*>(mCandidates.data()) : nullptr;
    check(sts::repulsionSelectHost(mShape, mType, mFeatures.data(), mAnchored ? mFirst.data() : nullptr, candidates, kEpsilon, all.data(),
                                   scratch.get()) == Status::kOk,
          name + ": refused on the host");
    return all;
  }

  size_t workspaceSize() const { return sts::repulsionSelectWorkspace(mShape); }
  size_t floorBytes() const { return mX.size() + chosen.size(); }

  // Up to 4096 rows: the matrix is written once and a row of it read per step; beyond, every step reads all features.
  size_t movedBytes() const {
    size_t const pairs = static_cast<size_t>(mShape.crops * mShape.rows), steps = static_cast<size_t>(mShape.steps);
    return mShape.rows <= 4096 ? mX.size() + pairs * (static_cast<size_t>(mShape.rows) + steps) * 4 : steps * (mX.size() + pairs * 8);
  }

  std::string const name;

 private:
  int64_t const* firstRows() {
    for (size_t crop = 0; crop < mFirst.size(); ++crop) mFirst[crop] = static_cast<int64_t>(crop * 7919 + 5) % mShape.rows;
    return mFirst.data();
  }

  char const* candidates() {
    for (size_t i = 0; mMasked && i < mCandidates.size(); ++i) mCandidates[i] = i % 3 != 1;
    return mCandidates.data();
  }

  sts::RepulsionSelectShape mShape;
  DataType mType;
  bool mMasked, mAnchored;
  std::vector<char> mFeatures;
  std::vector<int64_t> mFirst;
  std::vector<char> mCandidates;
  Buffer mX, mAnchor, mMask;

 public:
  Buffer chosen;  // output
};

void checkRepulsion(sts::RepulsionSelectShape const& shape, DataType type, Kind kind, bool masked, bool anchored) {
  RepulsionCase const one(shape, type, kind, masked, anchored, static_cast<uint64_t>(shape.rows + shape.steps));
  std::vector<int64_t> const expected = one.expected();
  Buffer workspace(one.workspaceSize());
  for (Way const& way : repulsionWays(shape.rows)) {
    Call const call = [&](cudaStream_t stream) { return one.enqueue(way, workspace, stream); };
    compare(one.name + way.name, call, workspace, {{one.chosen, expected}});
  }
}

// Two calls in turn on one workspace: none may start before the one before has read what it overwrites.
void checkRepulsionsInTurn(sts::RepulsionSelectShape const& shape) {
  RepulsionCase const one(shape, DataType::kHalf, Kind::kNormal, false, true, 1), other(shape, DataType::kHalf, Kind::kNormal, true, false, 2);
  std::vector<int64_t> const expected = one.expected(), expectedOther = other.expected();
  Buffer workspace(one.workspaceSize());
  for (Way const& way : repulsionWays(shape.rows)) {
    Call const call = [&](cudaStream_t stream) { return inTurn(one, other, way, workspace, stream); };
    compare(one.name + way.name + ", two in turn", call, workspace, {{one.chosen, expected}, {other.chosen, expectedOther}});
  }
}

void checkGram(int64_t rows, int64_t steps) {
  std::string const name = "repulsion from gram " + std::to_string(rows) + "/" + std::to_string(steps);
  sts::RepulsionSelectShape const shape{1, rows, 1, steps};
  std::vector<float> points(static_cast<size_t>(rows) * 2), gram(static_cast<size_t>(rows * rows));
  std::mt19937_64 random(static_cast<uint64_t>(rows));
  for (float& value : points) value = static_cast<float>(static_cast<int>(random() % 41) - 20) * 0.25f;
  for (size_t i = 0; i < static_cast<size_t>(rows); ++i) {
    for (size_t j = 0; j < static_cast<size_t>(rows); ++j) {
      gram[i * static_cast<size_t>(rows) + j] = points[2 * i] * points[2 * j] + points[2 * i + 1] * points[2 * j + 1];
    }
  }
  int64_t const first = rows - 1;
  std::vector<int64_t> expected(static_cast<size_t>(steps));
  Scratch scratch(sts::repulsionSelectWorkspace(shape));
  check(sts::repulsionSelectFromGramHost(shape, gram.data(), &first, nullptr, kEpsilon, expected.data(), scratch.get()) == Status::kOk,
        name + ": refused on the host");
  Buffer const matrix(gram.size() * 4, gram.data()), anchor(8, &first);
  Buffer chosen(expected.size() * 8), workspace(sts::repulsionSelectWorkspace(shape));
  auto const* const products = static_cast<float const*>(matrix.get());
  auto const* const anchors = static_cast<int64_t const*>(anchor.get());
  auto* const out = static_cast<int64_t*>(chosen.get());
  Call const call = [&](cudaStream_t stream) {
#if defined(__CUDACC__)
    if (!options.hostOnly) return sts::repulsionSelectFromGram(shape, products, anchors, nullptr, kEpsilon, out, workspace.get(), stream);
#endif
    static_cast<void>(stream);
    return sts::repulsionSelectFromGramHost(shape, products, anchors, nullptr, kEpsilon, out, workspace.get());
  };
  compare(name, call, workspace, {{chosen, expected}});
}

}  // namespace
