// sts::LastTokenTopK: stage 2 of STS, equations 6 and 7 (arXiv 2606.03569), as in pruning/stage2/last_token.py.
//
// Per request: the query of the last real row against all real rows up to it, softmax per head and mean over heads in float32; of the visual rows the
// visualKeep with the largest score survive (ties: the lowest row), and every other row, padding included.
//
// No allocation, no synchronization with the host; all work is enqueued on `stream` and may be captured in a CUDA graph.
#pragma once

#include "types.h"

namespace sts {

struct LastTokenTopKShape {
  int64_t batch;       // 1 .. kMaxBatch
  int64_t heads;       // a multiple of kvHeads
  int64_t kvHeads;     // 1 .. kMaxHeads
  int64_t rows;        // 1 .. kMaxRows
  int64_t headDim;     // 1 .. kMaxWidth
  int64_t visual;      // 1 .. rows; the length of visual_embeds, 1 where there is no visual row (text, decode)
  int64_t visualKeep;  // 1 .. visual; the length of stage2_slots
};

// Bytes of workspace; never decreases with any field, so the largest shape of a profile covers all others.  0 for an invalid shape.
size_t lastTokenTopKWorkspace(LastTokenTopKShape const& shape);

// query: [batch, heads, rows, headDim], key: [batch, kvHeads, rows, headDim], both rotated
// attentionMask: [batch, rows], not 0 for real rows
// visualMask: [batch, rows], bytes of 0 or 1
// scale: finite
// keptRows: [batch, rows - visual + visualKeep], ascending
// lastRow: [batch], how many kept rows lie before the last real one
// workspace: at least lastTokenTopKWorkspace(shape) bytes, aligned to 256
//
// Where a request has fewer visual rows than `visual`, the last of its surviving rows do not fit and are left out; where it has more, the lowest of
// the dropped rows follow the surviving ones.  That is what the function body does, too.
Status lastTokenTopK(LastTokenTopKShape const& shape, DataType type, void const* query, void const* key, int64_t const* attentionMask,
                     bool const* visualMask, float scale, int64_t* keptRows, int64_t* lastRow, void* workspace, cudaStream_t stream,
                     LaunchOptions const& launching = {});

// The same algorithm on this thread; every pointer is a host pointer.  The results equal the device's bit for bit.
Status lastTokenTopKHost(LastTokenTopKShape const& shape, DataType type, void const* query, void const* key, int64_t const* attentionMask,
                         bool const* visualMask, float scale, int64_t* keptRows, int64_t* lastRow, void* workspace);

// Why the current device runs neither stage's kernels, in CUDA's words: an old driver, a device that they were not compiled for.  nullptr if it does.
char const* deviceRefusal();

}  // namespace sts
