// Stage 1 on the device: launches of the bodies.  README.md tells what runs where.
#include "launch.h"
#include "matrix/tile_body.h"
#include "matrix/tile_size.h"
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

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 512 / Tile::kThreads)
    tileKernel(Features<T> x, uint32_t blocksOfCrop, float epsilon, float* repulsions) {
  __shared__ TileShared<Tile> shared;
  allowNext();
  CudaBlock group;
  int64_t const crop = blockIdx.x / blocksOfCrop;
  tileBody<Tile>(group, shared, x, crop, TileIndex::of(blockIdx.x % blocksOfCrop), epsilon, repulsions + crop * x.rows * x.rows);
}

template <int kRowsOfThread, bool kGram>
__global__ void __launch_bounds__(1024) greedyKernel(float const* matrix, int64_t rows, int64_t steps, int64_t const* first,
                                                     unsigned long long const* anchors, bool const* candidates, float epsilon, int64_t* chosen) {
  __shared__ GreedyShared shared;
  awaitPrevious();
  CudaBlock group;
  int64_t const crop = blockIdx.x;
  greedyBody<CudaBlock, kRowsOfThread, kGram>(group, shared, matrix + crop * rows * rows, rows, steps, firstOf(first, anchors, crop),
                                              ofCrop(candidates, crop, rows), epsilon, chosen + crop * steps);
}

__global__ void __launch_bounds__(kStepThreads)
    startKernel(int64_t rows, uint32_t blocksOfCrop, int64_t steps, int64_t const* first, unsigned long long const* anchors, bool const* candidates,
                float* potential, unsigned long long* keys) {
  allowNext();
  CudaBlock group;
  int64_t const crop = blockIdx.x / blocksOfCrop, index = blockIdx.x % blocksOfCrop * int64_t{kStepThreads};
  startBody(group, index, rows, steps, firstOf(first, anchors, crop), ofCrop(candidates, crop, rows), potential + crop * rows, keys + crop * steps);
}

template <class T>
__global__ void __launch_bounds__(kStepThreads)
    stepKernel(Features<T> x, uint32_t blocksOfCrop, int64_t steps, int64_t step, float epsilon, float* potential, unsigned long long* keys) {
  __shared__ LeastScratch shared;
  awaitPrevious();
  allowNext();
  CudaBlock group;
  int64_t const crop = blockIdx.x / blocksOfCrop, row = blockIdx.x % blocksOfCrop * int64_t{kStepRows};
  stepBody(group, shared, x, crop, row, step, epsilon, potential + crop * x.rows, keys + crop * steps);
}

__global__ void __launch_bounds__(kStepThreads) gramStepKernel(float const* gram, int64_t rows, uint32_t blocksOfCrop, int64_t steps, int64_t step,
                                                               float epsilon, float* potential, unsigned long long* keys) {
  __shared__ LeastScratch shared;
  awaitPrevious();
  allowNext();
  CudaBlock group;
  int64_t const crop = blockIdx.x / blocksOfCrop, row = blockIdx.x % blocksOfCrop * int64_t{kGramStepRows};
  gramStepBody(group, shared, gram + crop * rows * rows, rows, row, step, epsilon, potential + crop * rows, keys + crop * steps);
}

__global__ void __launch_bounds__(kStepThreads) finishKernel(unsigned long long const* keys, int64_t count, int64_t* chosen) {
  awaitPrevious();
  CudaBlock group;
  int64_t const index = int64_t{blockIdx.x} * kStepThreads + group.rank();
  if (index < count) chosen[index] = rowOf(keys[index]);
}

// How one call is launched.
struct Launching {
  cudaStream_t stream;
  bool dependent;
  int64_t tileRows;

  Launching(RepulsionSelectShape const& shape, LaunchOptions const& options, cudaStream_t on)
      : stream(on),
        dependent(options.dependent && canDepend(finishKernel)),
        tileRows(options.tileRows != 0 ? options.tileRows : chooseTile(shape.crops, shape.rows, multiprocessors())) {}
};

bool valid(LaunchOptions const& options) {
  return options.tileRows == 0 || options.tileRows == NarrowTile::kRows || options.tileRows == WideTile::kRows;
}

template <class Tile, class T>
void fillMatrix(RepulsionSelectShape const& shape, Features<T> const& x, float epsilon, float* repulsions, cudaStream_t stream) {
  int64_t const tiles = tilesOf(shape.rows, Tile::kRows);
  launch(tileKernel<T, Tile>, tiles * shape.crops, Tile::kThreads, stream, x, tiles, epsilon, repulsions);
}

// Reads the matrix of the kernel before it, if there is one.
template <bool kGram>
void greedy(RepulsionSelectShape const& shape, float const* matrix, int64_t const* first, unsigned long long const* anchors, bool const* candidates,
            float epsilon, int64_t* chosen, Launching const& how) {
  auto const run = [&](auto kernel, int64_t threads) {
    launchNext(how.dependent && !kGram, kernel, shape.crops, threads, how.stream, matrix, shape.rows, shape.steps, first, anchors, candidates,
               epsilon, chosen);
  };
  if (shape.rows <= 1024) return run(greedyKernel<1, kGram>, ceilDivide(shape.rows, 32) * 32);
  if (shape.rows <= 2048) return run(greedyKernel<2, kGram>, 1024);
  if (shape.rows <= 3072) return run(greedyKernel<3, kGram>, 1024);
  static_assert(kMatrixRows == 4096, "one block of 1024 threads holds 4 rows a thread");
  run(greedyKernel<4, kGram>, 1024);
}

// The choices beyond kMatrixRows, a chain: `step(s)` launches step s.
template <class Step>
void stepByStep(RepulsionSelectShape const& shape, int64_t const* first, bool const* candidates, RepulsionParts const& parts, int64_t* chosen,
                Launching const& how, Step const& step) {
  int64_t const startBlocks = ceilDivide(shape.rows, kStepThreads);
  launch(startKernel, startBlocks * shape.crops, kStepThreads, how.stream, shape.rows, startBlocks, shape.steps, first, parts.anchors, candidates,
         parts.potential, parts.keys);
  for (int64_t s = 1; s < shape.steps; ++s) step(s);
  int64_t const count = shape.crops * shape.steps;
  launchNext(how.dependent, finishKernel, ceilDivide(count, kStepThreads), kStepThreads, how.stream, parts.keys, count, chosen);
}

template <class T>
Status selectTyped(RepulsionSelectShape const& shape, void const* features, int64_t const* first, bool const* candidates, float epsilon,
                   int64_t* chosen, RepulsionParts const& parts, Launching const& how) {
  Features<T> const x{static_cast<T const*>(features), shape.rows, shape.width, vectorsAligned<T>(features, shape.width)};
  int64_t const stepBlocks = ceilDivide(shape.rows, kStepRows);
  if (first == nullptr) {
    int64_t const meanBlocks = ceilDivide(shape.width, kMeanColumns);
    size_t const size = static_cast<size_t>(shape.crops) * sizeof(unsigned long long);
    if (cudaMemsetAsync(parts.anchors, 0xff, size, how.stream) != cudaSuccess) return launched();
    launch(meanKernel<T>, meanBlocks * shape.crops, kMeanThreads, how.stream, x, meanBlocks, candidates, parts.mean);
    launch(anchorKernel<T>, stepBlocks * shape.crops, kStepThreads, how.stream, x, stepBlocks, candidates, parts.mean, parts.anchors);
  }
  if (shape.rows <= kMatrixRows) {
    auto const fill = how.tileRows == NarrowTile::kRows ? fillMatrix<NarrowTile, T> : fillMatrix<WideTile, T>;
    fill(shape, x, epsilon, parts.repulsions, how.stream);
    greedy<false>(shape, parts.repulsions, first, parts.anchors, candidates, epsilon, chosen, how);
  } else {
    stepByStep(shape, first, candidates, parts, chosen, how, [&](int64_t step) {
      launchNext(how.dependent, stepKernel<T>, stepBlocks * shape.crops, kStepThreads, how.stream, x, stepBlocks, shape.steps, step, epsilon,
                 parts.potential, parts.keys);
    });
  }
  return launched();
}

}  // namespace

Status repulsionSelect(RepulsionSelectShape const& shape, DataType type, void const* features, int64_t const* first, bool const* candidates,
                       float epsilon, int64_t* chosen, void* workspace, cudaStream_t stream, LaunchOptions const& launching) {
  if (!valid(shape) || !validEpsilon(epsilon) || features == nullptr || chosen == nullptr || workspace == nullptr || !valid(launching))
    return Status::kInvalid;
  RepulsionParts const parts(shape, workspace);
  Launching const how(shape, launching, stream);
  switch (type) {
    case DataType::kFloat: return selectTyped<float>(shape, features, first, candidates, epsilon, chosen, parts, how);
    case DataType::kHalf: return selectTyped<Half>(shape, features, first, candidates, epsilon, chosen, parts, how);
    case DataType::kBfloat16: return selectTyped<Bfloat16>(shape, features, first, candidates, epsilon, chosen, parts, how);
  }
  return Status::kInvalid;
}

Status repulsionSelectFromGram(RepulsionSelectShape const& shape, float const* gram, int64_t const* first, bool const* candidates, float epsilon,
                               int64_t* chosen, void* workspace, cudaStream_t stream, LaunchOptions const& launching) {
  if (!valid(shape) || !validEpsilon(epsilon) || gram == nullptr || first == nullptr || chosen == nullptr || workspace == nullptr ||
      !valid(launching))
    return Status::kInvalid;
  RepulsionParts const parts(shape, workspace);
  Launching const how(shape, launching, stream);
  if (shape.rows <= kMatrixRows) {
    greedy<true>(shape, gram, first, parts.anchors, candidates, epsilon, chosen, how);
    return launched();
  }
  int64_t const stepBlocks = ceilDivide(shape.rows, kGramStepRows);
  stepByStep(shape, first, candidates, parts, chosen, how, [&](int64_t step) {
    launchNext(how.dependent, gramStepKernel, stepBlocks * shape.crops, kStepThreads, how.stream, gram, shape.rows, stepBlocks, shape.steps, step,
               epsilon, parts.potential, parts.keys);
  });
  return launched();
}

}  // namespace sts
