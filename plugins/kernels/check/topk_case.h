// One call of stage 2, on the side that is checked, and what it should keep.
#pragma once

#include "../last_token_topk.h"
#include "inputs.h"

namespace {

std::vector<Way> topkWays() {
  std::vector<Way> ways{{"", {}}};
  if (!options.hostOnly && !options.checksOnly) ways.push_back({" ordinary launches", {0, false}});
  return ways;
}

class TopKCase {
 public:
  // padding: rows after the last real one, of every other request.  visualRows: those of the mask, not what the shape announces.
  TopKCase(sts::LastTokenTopKShape const& shape, DataType type, Kind kind, int64_t padding, int64_t visualRows, uint64_t seed)
      : name("topk " + std::to_string(shape.batch) + "x" + std::to_string(shape.heads) + "/" + std::to_string(shape.kvHeads) + "x" +
             std::to_string(shape.rows) + "x" + std::to_string(shape.headDim) + " " + std::to_string(shape.visual) + "->" +
             std::to_string(shape.visualKeep) + " " + nameOf(type) + nameOf(kind)),
        mShape(shape),
        mType(type),
        mScale(1.0f / std::sqrt(static_cast<float>(shape.headDim))),
        mHost(request(shape, type, kind, padding, visualRows, seed)),
        mQuery(mHost.query.size(), mHost.query.data()),
        mKey(mHost.key.size(), mHost.key.data()),
        mMask(mHost.mask.size() * 8, mHost.mask.data()),
        mVisual(mHost.visual.size(), mHost.visual.data()),
        kept(static_cast<size_t>(shape.batch * (shape.rows - shape.visual + shape.visualKeep)) * 8),
        last(static_cast<size_t>(shape.batch) * 8) {}

  Status enqueue(Way const& way, Buffer& workspace, cudaStream_t stream) const {
    auto const* const present = static_cast<int64_t const*>(mMask.get());
    auto const* const seen = static_cast<bool const*>(mVisual.get());
    auto* const keptRows = static_cast<int64_t*>(kept.get());
    auto* const lastRow = static_cast<int64_t*>(last.get());
#if defined(__CUDACC__)
    if (!options.hostOnly)
      return sts::lastTokenTopK(mShape, mType, mQuery.get(), mKey.get(), present, seen, mScale, keptRows, lastRow, workspace.get(), stream,
                                way.launching);
#endif
    static_cast<void>(stream);
    static_cast<void>(way);
    return sts::lastTokenTopKHost(mShape, mType, mQuery.get(), mKey.get(), present, seen, mScale, keptRows, lastRow, workspace.get());
  }

  struct Result {
    std::vector<int64_t> kept, last;
  };

  // What the host keeps.
  Result expected() const {
    Result all{std::vector<int64_t>(kept.size() / 8), std::vector<int64_t>(last.size() / 8)};
    Scratch scratch(workspaceSize());
    check(sts::lastTokenTopKHost(mShape, mType, mHost.query.data(), mHost.key.data(), mHost.mask.data(),
                                 reinterpret_cast<bool const*>(mHost.visual.data()), mScale, all.kept.data(), all.last.data(),
                                 scratch.get()) == Status::kOk,
          name + ": refused on the host");
    return all;
  }

  size_t workspaceSize() const { return sts::lastTokenTopKWorkspace(mShape); }

  // Of the queries, only the last rows are read.
  size_t floorBytes() const {
    return mQuery.size() / static_cast<size_t>(mShape.rows) + mKey.size() + mMask.size() + mVisual.size() + kept.size() + last.size();
  }

  std::string const name;

 private:
  struct Request {
    std::vector<char> query, key, visual;
    std::vector<int64_t> mask;
  };

  static Request request(sts::LastTokenTopKShape const& shape, DataType type, Kind kind, int64_t padding, int64_t visualRows, uint64_t seed) {
    Request made;
    made.query = values(type, kind, shape.batch * shape.heads, shape.rows, shape.headDim, 2 * seed + 1);
    made.key = values(type, kind, shape.batch * shape.kvHeads, shape.rows, shape.headDim, 2 * seed + 2);
    int64_t const before = std::min<int64_t>(5, shape.rows - visualRows);
    for (int64_t b = 0; b < shape.batch; ++b) {
      for (int64_t row = 0; row < shape.rows; ++row) {
        made.mask.push_back(row < shape.rows - padding * (b % 2) ? 1 : 0);
        made.visual.push_back(before <= row && row < before + visualRows ? 1 : 0);
      }
    }
    return made;
  }

  sts::LastTokenTopKShape mShape;
  DataType mType;
  float mScale;
  Request mHost;
  Buffer mQuery, mKey, mMask, mVisual;

 public:
  Buffer kept, last;  // outputs
};

void checkTopK(sts::LastTokenTopKShape const& shape, DataType type, Kind kind, int64_t padding, int64_t visualRows) {
  TopKCase const one(shape, type, kind, padding, visualRows, 0);
  TopKCase::Result const expected = one.expected();
  Buffer workspace(one.workspaceSize());
  for (Way const& way : topkWays()) {
    Call const call = [&](cudaStream_t stream) { return one.enqueue(way, workspace, stream); };
    compare(one.name + way.name, call, workspace, {{one.kept, expected.kept}, {one.last, expected.last}});
  }
}

// Two calls in turn on one workspace: none may start before the one before has read what it overwrites.
void checkTopKsInTurn(sts::LastTokenTopKShape const& shape) {
  TopKCase const one(shape, DataType::kHalf, Kind::kNormal, 0, shape.visual, 1), other(shape, DataType::kHalf, Kind::kNormal, 0, shape.visual, 2);
  TopKCase::Result const expected = one.expected(), expectedOther = other.expected();
  Buffer workspace(one.workspaceSize());
  for (Way const& way : topkWays()) {
    Call const call = [&](cudaStream_t stream) { return inTurn(one, other, way, workspace, stream); };
    compare(one.name + way.name + ", two in turn", call, workspace,
            {{one.kept, expected.kept}, {one.last, expected.last}, {other.kept, expectedOther.kept}, {other.last, expectedOther.last}});
  }
}

}  // namespace
