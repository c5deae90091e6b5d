// Stage 1 on the device: launches of the bodies.  README.md tells what runs where.
#include "launch.h"
#include "repulsion_body.h"
#include "workspace.h"

namespace sts {
namespace {

STS_DEVICE int64_t firstOf(int64_t const* first, unsigned long long const* anchors, int64_t crop) {
  return first != nullptr ? first[crop] : static_cast<int64_t>(rowOf(anchors[crop]));
}

STS_DEVICE bool const* ofCrop(bool const* candidates, int64_t crop, int64_t rows) {
  return candidates == nullptr ? nullptr : candidates + crop * rows;
}

// Every grid is one-dimensional: the blocks of a crop are consecutive.  Divided in 32 bits: 64 take the device a hundred instructions.

template <class T>
__global__ void __launch_bounds__(kMeanThreads) meanKernel(Features<T> x, uint32_t blocksOfCrop, bool const* candidates, float* mean) {
  __shared__ MeanShared shared;
  CudaBlock group;
  int64_t const crop = blockIdx.x / blocksOfCrop, column = blockIdx.x % blocksOfCrop * int64_t{kMeanColumns};
  meanBody(group, shared, x, crop, column, ofCrop(candidates, crop, x.rows), mean + crop * x.width);
}

template <class T>
__global__ void __launch_bounds__(kStepThreads)
    anchorKernel(Features<T> x, uint32_t blocksOfCrop, bool const* candidates, float const* mean, unsigned long long* anchors) {
  __shared__ LeastScratch shared;
  CudaBlock group;
  int64_t const crop = blockIdx.x / blocksOfCrop, row = blockIdx.x % blocksOfCrop * int64_t{kStepRows};
  anchorBody(group, shared, x, crop, row, ofCrop(candidates, crop, x.rows), mean + crop * x.width, anchors + crop);
}

template <class T>
__global__ void __launch_bounds__(kTileThreads, 2) tileKernel(Features<T> x, uint32_t blocksOfCrop, float epsilon, float* repulsions) {
  __shared__ TileShared shared;
  CudaBlock group;
  int64_t const crop = blockIdx.x / blocksOfCrop;
  tileBody(group, shared, x, crop, TileIndex::of(blockIdx.x % blocksOfCrop), epsilon, repulsions + crop * x.rows * x.rows);
}

template <int kRowsOfThread, bool kGram>
__global__ void __launch_bounds__(1024) greedyKernel(float const* matrix, int64_t rows, int64_t steps, int64_t const* first,
                                                     unsigned long long const* anchors, bool const* candidates, float epsilon, int64_t* chosen) {
  __shared__ GreedyShared shared;
  CudaBlock group;
  int64_t const crop = blockIdx.x;
  greedyBody<CudaBlock, kRowsOfThread, kGram>(group, shared, matrix + crop * rows * rows, rows, steps, firstOf(first, anchors, crop),
                                              ofCrop(candidates, crop, rows), epsilon, chosen + crop * steps);
}

__global__ void __launch_bounds__(kStepThreads)
    startKernel(int64_t rows, uint32_t blocksOfCrop, int64_t steps, int64_t const* first, unsigned long long const* anchors, bool const* candidates,
                float* potential, unsigned long long* keys) {
  CudaBlock group;
  int64_t const crop = blockIdx.x / blocksOfCrop, index = blockIdx.x % blocksOfCrop * int64_t{kStepThreads};
  startBody(group, index, rows, steps, firstOf(first, anchors, crop), ofCrop(candidates, crop, rows), potential + crop * rows, keys + crop * steps);
}

template <class T>
__global__ void __launch_bounds__(kStepThreads)
    stepKernel(Features<T> x, uint32_t blocksOfCrop, int64_t steps, int64_t step, float epsilon, float* potential, unsigned long long* keys) {
  __shared__ LeastScratch shared;
  CudaBlock group;
  int64_t const crop = blockIdx.x / blocksOfCrop, row = blockIdx.x % blocksOfCrop * int64_t{kStepRows};
  stepBody(group, shared, x, crop, row, step, epsilon, potential + crop * x.rows, keys + crop * steps);
}

__global__ void __launch_bounds__(kStepThreads) gramStepKernel(float const* gram, int64_t rows, uint32_t blocksOfCrop, int64_t steps, int64_t step,
                                                               float epsilon, float* potential, unsigned long long* keys) {
  __shared__ LeastScratch shared;
  CudaBlock group;
  int64_t const crop = blockIdx.x / blocksOfCrop, row = blockIdx.x % blocksOfCrop * int64_t{kGramStepRows};
  gramStepBody(group, shared, gram + crop * rows * rows, rows, row, step, epsilon, potential + crop * rows, keys + crop * steps);
}

__global__ void __launch_bounds__(kStepThreads) finishKernel(unsigned long long const* keys, int64_t count, int64_t* chosen) {
  int64_t const index = int64_t{blockIdx.x} * kStepThreads + threadIdx.x;
  if (index < count) chosen[index] = rowOf(keys[index]);
}

template <bool kGram>
void greedy(RepulsionSelectShape const& shape, float const* matrix, int64_t const* first, unsigned long long const* anchors, bool const* candidates,
            float epsilon, int64_t* chosen, cudaStream_t stream) {
  auto const run = [&](auto kernel, int64_t threads) {
    launch(kernel, shape.crops, threads, stream, matrix, shape.rows, shape.steps, first, anchors, candidates, epsilon, chosen);
  };
  if (shape.rows <= 1024) return run(greedyKernel<1, kGram>, ceilDivide(shape.rows, 32) * 32);
  if (shape.rows <= 2048) return run(greedyKernel<2, kGram>, 1024);
  if (shape.rows <= 3072) return run(greedyKernel<3, kGram>, 1024);
  static_assert(kMatrixRows == 4096, "one block of 1024 threads holds 4 rows a thread");
  run(greedyKernel<4, kGram>, 1024);
}

// The choices beyond kMatrixRows: `step(s)` launches step s.
template <class Step>
void stepByStep(RepulsionSelectShape const& shape, int64_t const* first, bool const* candidates, RepulsionParts const& parts, int64_t* chosen,
                cudaStream_t stream, Step const& step) {
  int64_t const startBlocks = ceilDivide(shape.rows, kStepThreads);
  launch(startKernel, startBlocks * shape.crops, kStepThreads, stream, shape.rows, startBlocks, shape.steps, first, parts.anchors, candidates,
         parts.potential, parts.keys);
  for (int64_t s = 1; s < shape.steps; ++s) step(s);
  int64_t const count = shape.crops * shape.steps;
  launch(finishKernel, ceilDivide(count, kStepThreads), kStepThreads, stream, parts.keys, count, chosen);
}

template <class T>
Status selectTyped(RepulsionSelectShape const& shape, void const* features, int64_t const* first, bool const* candidates, float epsilon,
                   int64_t* chosen, RepulsionParts const& parts, cudaStream_t stream) {
  Features<T> const x{static_cast<T const*>(features), shape.rows, shape.width, vectorsAligned<T>(features, shape.width)};
  int64_t const stepBlocks = ceilDivide(shape.rows, kStepRows);
  if (first == nullptr) {
    int64_t const meanBlocks = ceilDivide(shape.width, kMeanColumns);
    size_t const size = static_cast<size_t>(shape.crops) * sizeof(unsigned long long);
    if (cudaMemsetAsync(parts.anchors, 0xff, size, stream) != cudaSuccess) return launched();
    launch(meanKernel<T>, meanBlocks * shape.crops, kMeanThreads, stream, x, meanBlocks, candidates, parts.mean);
    launch(anchorKernel<T>, stepBlocks * shape.crops, kStepThreads, stream, x, stepBlocks, candidates, parts.mean, parts.anchors);
  }
  if (shape.rows <= kMatrixRows) {
    int64_t const tiles = ceilDivide(shape.rows, kTile), pairs = tiles * (tiles + 1) / 2;
    launch(tileKernel<T>, pairs * shape.crops, kTileThreads, stream, x, pairs, epsilon, parts.repulsions);
    greedy<false>(shape, parts.repulsions, first, parts.anchors, candidates, epsilon, chosen, stream);
  } else {
    stepByStep(shape, first, candidates, parts, chosen, stream, [&](int64_t step) {
      launch(stepKernel<T>, stepBlocks * shape.crops, kStepThreads, stream, x, stepBlocks, shape.steps, step, epsilon, parts.potential, parts.keys);
    });
  }
  return launched();
}

}  // namespace

Status repulsionSelect(RepulsionSelectShape const& shape, DataType type, void const* features, int64_t const* first, bool const* candidates,
                       float epsilon, int64_t* chosen, void* workspace, cudaStream_t stream) {
  if (!valid(shape) || !validEpsilon(epsilon) || features == nullptr || chosen == nullptr || workspace == nullptr) return Status::kInvalid;
  RepulsionParts const parts(shape, workspace);
  switch (type) {
    case DataType::kFloat: return selectTyped<float>(shape, features, first, candidates, epsilon, chosen, parts, stream);
    case DataType::kHalf: return selectTyped<Half>(shape, features, first, candidates, epsilon, chosen, parts, stream);
    case DataType::kBfloat16: return selectTyped<Bfloat16>(shape, features, first, candidates, epsilon, chosen, parts, stream);
  }
  return Status::kInvalid;
}

Status repulsionSelectFromGram(RepulsionSelectShape const& shape, float const* gram, int64_t const* first, bool const* candidates, float epsilon,
                               int64_t* chosen, void* workspace, cudaStream_t stream) {
  if (!valid(shape) || !validEpsilon(epsilon) || gram == nullptr || first == nullptr || chosen == nullptr || workspace == nullptr)
    return Status::kInvalid;
  RepulsionParts const parts(shape, workspace);
  if (shape.rows <= kMatrixRows) {
    greedy<true>(shape, gram, first, parts.anchors, candidates, epsilon, chosen, stream);
    return launched();
  }
  int64_t const stepBlocks = ceilDivide(shape.rows, kGramStepRows);
  stepByStep(shape, first, candidates, parts, chosen, stream, [&](int64_t step) {
    launch(gramStepKernel, stepBlocks * shape.crops, kStepThreads, stream, gram, shape.rows, stepBlocks, shape.steps, step, epsilon, parts.potential,
           parts.keys);
  });
  return launched();
}

}  // namespace sts
