// sts::RepulsionSelect: stage 1 of STS, equations 3 to 5 (arXiv 2606.03569), as in pruning/stage1/repulsion.py.
//
// Per crop: chosen[0] = first; then, step by step, the row with the least potential U = sum over the chosen rows j, in the order of choice, of
// 1 / (squared distance to j + epsilon), all in float32; ties go to the lowest row.  Chosen rows and rows that are no candidates have a potential of
// 1e30.  Once a crop has no candidate left its further choices are rows of that crop, but mean nothing.
//
// No allocation, no synchronization with the host; all work is enqueued on `stream` and may be captured in a CUDA graph.
#pragma once

#include "types.h"

namespace sts {

struct RepulsionSelectShape {
  int64_t crops;  // 1 .. kMaxBatch
  int64_t rows;   // 1 .. kMaxRows
  int64_t width;  // 1 .. kMaxWidth; not read when selecting from a Gram matrix
  int64_t steps;  // 1 .. rows
};

// Bytes of workspace; never decreases with any field, so the largest shape of a profile covers all others.  0 for an invalid shape.
size_t repulsionSelectWorkspace(RepulsionSelectShape const& shape);

// features: [crops, rows, width]
// first: [crops], each within its crop (clamped otherwise); nullptr: the candidate closest to the mean of the candidates
// candidates: [crops, rows], bytes of 0 or 1; nullptr: all rows
// epsilon: > 0, finite
// chosen: [crops, steps], in the order of choice
// workspace: at least repulsionSelectWorkspace(shape) bytes, aligned to 256
Status repulsionSelect(RepulsionSelectShape const& shape, DataType type, void const* features, int64_t const* first, bool const* candidates,
                       float epsilon, int64_t* chosen, void* workspace, cudaStream_t stream, LaunchOptions const& launching = {});

// gram: [crops, rows, rows] products of the (centred) features; squared distances are max(g_ii + g_jj - 2 g_ij, 0).
// first: as above, but not nullptr: the mean is not known here
Status repulsionSelectFromGram(RepulsionSelectShape const& shape, float const* gram, int64_t const* first, bool const* candidates, float epsilon,
                               int64_t* chosen, void* workspace, cudaStream_t stream, LaunchOptions const& launching = {});

// The same algorithms on this thread; every pointer is a host pointer.  The results equal the device's bit for bit.
Status repulsionSelectHost(RepulsionSelectShape const& shape, DataType type, void const* features, int64_t const* first, bool const* candidates,
                           float epsilon, int64_t* chosen, void* workspace);
Status repulsionSelectFromGramHost(RepulsionSelectShape const& shape, float const* gram, int64_t const* first, bool const* candidates, float epsilon,
                                   int64_t* chosen, void* workspace);

}  // namespace sts
