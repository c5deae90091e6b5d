// Stage 2 on one thread.
#include "../last_token_topk.h"

#include "../topk_body.h"
#include "../workspace.h"

namespace sts {
namespace {

template <class T>
void chooseTyped(LastTokenTopKShape const& shape, void const* queries, void const* keys, int64_t const* attentionMask, bool const* visualMask,
                 float scale, int64_t* keptRows, int64_t* lastRow, LastTokenParts const& parts) {
  SerialGroup group;
  Heads<T> const query{static_cast<T const*>(queries), shape.heads, shape.rows, shape.headDim, vectorsAligned<T>(queries, shape.headDim)};
  Heads<T> const key{static_cast<T const*>(keys), shape.kvHeads, shape.rows, shape.headDim, vectorsAligned<T>(keys, shape.headDim)};
  int64_t const headsOfKey = shape.heads / shape.kvHeads;
  int64_t const survivors = shape.rows - shape.visual + shape.visualKeep;
  for (int64_t request = 0; request < shape.batch; ++request) {
    int64_t const* const mask = attentionMask + request * shape.rows;
    bool const* const visual = visualMask + request * shape.rows;
    float* const logits = parts.logits + request * shape.heads * shape.rows;
    HeadSoftmax* const softmax = parts.softmax + request * shape.heads;
    uint32_t* const scores = parts.scores + request * shape.rows;
    for (int64_t head = 0; head < shape.heads; ++head) {
      LogitShared logitShared;
      for (int64_t row = 0; row < shape.rows; row += kLogitRows)
        logitBody(group, logitShared, query.head(request, head), key.head(request, head / headsOfKey), row, mask, scale, logits + head * shape.rows);
      SoftmaxShared softmaxShared;
      softmaxBody(group, softmaxShared, logits + head * shape.rows, shape.rows, softmax + head);
    }
    ScoreShared scoreShared;
    for (int64_t row = 0; row < shape.rows; row += kScoreRows)
      scoreBody(group, scoreShared, logits, softmax, shape.heads, shape.rows, row, visual, scores);
    ChoiceShared choiceShared;
    choiceBody(group, choiceShared, scores, shape.rows, shape.visualKeep, survivors, mask, visual, keptRows + request * survivors, lastRow + request);
  }
}

}  // namespace

size_t lastTokenTopKWorkspace(LastTokenTopKShape const& shape) { return valid(shape) ? LastTokenParts(shape, nullptr).size : 0; }

Status lastTokenTopKHost(LastTokenTopKShape const& shape, DataType type, void const* query, void const* key, int64_t const* attentionMask,
                         bool const* visualMask, float scale, int64_t* keptRows, int64_t* lastRow, void* workspace) {
  if (!valid(shape) || !knownType(type) || !std::isfinite(scale) || query == nullptr || key == nullptr || attentionMask == nullptr ||
      visualMask == nullptr || keptRows == nullptr || lastRow == nullptr || workspace == nullptr)
    return Status::kInvalid;
  LastTokenParts const parts(shape, workspace);
  switch (type) {
    case DataType::kFloat: chooseTyped<float>(shape, query, key, attentionMask, visualMask, scale, keptRows, lastRow, parts); break;
    case DataType::kHalf: chooseTyped<Half>(shape, query, key, attentionMask, visualMask, scale, keptRows, lastRow, parts); break;
    case DataType::kBfloat16: chooseTyped<Bfloat16>(shape, query, key, attentionMask, visualMask, scale, keptRows, lastRow, parts); break;
  }
  return Status::kOk;
}

}  // namespace sts
