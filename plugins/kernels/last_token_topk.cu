// Stage 2 on the device: a chain of four launches of the bodies.
#include "last_token_topk.h"

#include "launch.h"
#include "topk_body.h"
#include "workspace.h"

namespace sts {
namespace {

// Every grid is one-dimensional: the blocks of a head, and the heads of a request, are consecutive.  Divided in 32 bits: 64 take the device a hundred
// instructions.

template <class T>
__global__ void __launch_bounds__(kLogitThreads) logitKernel(Heads<T> query, Heads<T> key, uint32_t blocksOfHead, uint32_t heads, uint32_t headsOfKey,
                                                             int64_t const* attentionMask, float scale, float* logits) {
  __shared__ LogitShared shared;
  allowNext();
  CudaBlock group;
  uint32_t const all = blockIdx.x / blocksOfHead, head = all % heads;
  int64_t const row = blockIdx.x % blocksOfHead * int64_t{kLogitRows}, request = all / heads;
  logitBody(group, shared, query.head(request, head), key.head(request, head / headsOfKey), row, attentionMask + request * key.rows, scale,
            logits + all * key.rows);
}

__global__ void __launch_bounds__(kSoftmaxThreads) softmaxKernel(float const* logits, int64_t rows, HeadSoftmax* softmax) {
  __shared__ SoftmaxShared shared;
  awaitPrevious();
  allowNext();
  CudaBlock group;
  int64_t const all = blockIdx.x;
  softmaxBody(group, shared, logits + all * rows, rows, softmax + all);
}

__global__ void __launch_bounds__(kScoreThreads) scoreKernel(float const* logits, HeadSoftmax const* softmax, int64_t heads, int64_t rows,
                                                             uint32_t blocksOfRequest, bool const* visualMask, uint32_t* scores) {
  __shared__ ScoreShared shared;
  awaitPrevious();
  allowNext();
  CudaBlock group;
  int64_t const request = blockIdx.x / blocksOfRequest, row = blockIdx.x % blocksOfRequest * int64_t{kScoreRows};
  scoreBody(group, shared, logits + request * heads * rows, softmax + request * heads, heads, rows, row, visualMask + request * rows,
            scores + request * rows);
}

__global__ void __launch_bounds__(kChoiceThreads)
    choiceKernel(uint32_t const* scores, int64_t rows, int64_t visualKeep, int64_t survivors, int64_t const* attentionMask, bool const* visualMask,
                 int64_t* keptRows, int64_t* lastRow) {
  __shared__ ChoiceShared shared;
  awaitPrevious();
  CudaBlock group;
  int64_t const request = blockIdx.x;
  choiceBody(group, shared, scores + request * rows, rows, visualKeep, survivors, attentionMask + request * rows, visualMask + request * rows,
             keptRows + request * survivors, lastRow + request);
}

template <class T>
Status chooseTyped(LastTokenTopKShape const& shape, void const* queries, void const* keys, int64_t const* attentionMask, bool const* visualMask,
                   float scale, int64_t* keptRows, int64_t* lastRow, LastTokenParts const& parts, cudaStream_t stream, bool dependent) {
  Heads<T> const query{static_cast<T const*>(queries), shape.heads, shape.rows, shape.headDim, vectorsAligned<T>(queries, shape.headDim)};
  Heads<T> const key{static_cast<T const*>(keys), shape.kvHeads, shape.rows, shape.headDim, vectorsAligned<T>(keys, shape.headDim)};
  int64_t const scoreBlocks = ceilDivide(shape.rows, kScoreRows);
  launch(logitKernel<T>, logitBlocks(shape), kLogitThreads, stream, query, key, ceilDivide(shape.rows, kLogitRows), shape.heads,
         shape.heads / shape.kvHeads, attentionMask, scale, parts.logits);
  launchNext(dependent, softmaxKernel, shape.batch * shape.heads, kSoftmaxThreads, stream, parts.logits, shape.rows, parts.softmax);
  launchNext(dependent, scoreKernel, scoreBlocks * shape.batch, kScoreThreads, stream, parts.logits, parts.softmax, shape.heads, shape.rows,
             scoreBlocks, visualMask, parts.scores);
  launchNext(dependent, choiceKernel, shape.batch, kChoiceThreads, stream, parts.scores, shape.rows, shape.visualKeep,
             shape.rows - shape.visual + shape.visualKeep, attentionMask, visualMask, keptRows, lastRow);
  return launched();
}

}  // namespace

Status lastTokenTopK(LastTokenTopKShape const& shape, DataType type, void const* query, void const* key, int64_t const* attentionMask,
                     bool const* visualMask, float scale, int64_t* keptRows, int64_t* lastRow, void* workspace, cudaStream_t stream,
                     LaunchOptions const& launching) {
  if (!valid(shape) || !std::isfinite(scale) || query == nullptr || key == nullptr || attentionMask == nullptr || visualMask == nullptr ||
      keptRows == nullptr || lastRow == nullptr || workspace == nullptr)
    return Status::kInvalid;
  LastTokenParts const parts(shape, workspace);
  bool const dependent = launching.dependent && canDepend(choiceKernel);
  switch (type) {
    case DataType::kFloat:
      return chooseTyped<float>(shape, query, key, attentionMask, visualMask, scale, keptRows, lastRow, parts, stream, dependent);
    case DataType::kHalf: return chooseTyped<Half>(shape, query, key, attentionMask, visualMask, scale, keptRows, lastRow, parts, stream, dependent);
    case DataType::kBfloat16:
      return chooseTyped<Bfloat16>(shape, query, key, attentionMask, visualMask, scale, keptRows, lastRow, parts, stream, dependent);
  }
  return Status::kInvalid;
}

char const* deviceRefusal() { return refusal(choiceKernel); }

}  // namespace sts
