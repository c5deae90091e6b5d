// Takes the place of the device kernels in libsts_plugins_host_enqueue.so: enqueue's pointers and sizes are then checked on machines without a GPU.
#include "last_token_topk.h"
#include "repulsion_select.h"

namespace sts {

Status repulsionSelect(RepulsionSelectShape const& shape, DataType type, void const* features, int64_t const* first, bool const* candidates,
                       float epsilon, int64_t* chosen, void* workspace, cudaStream_t /*stream*/, LaunchOptions const& /*launching*/) {
  return repulsionSelectHost(shape, type, features, first, candidates, epsilon, chosen, workspace);
}

Status lastTokenTopK(LastTokenTopKShape const& shape, DataType type, void const* query, void const* key, int64_t const* attentionMask,
                     bool const* visualMask, float scale, int64_t* keptRows, int64_t* lastRow, void* workspace, cudaStream_t /*stream*/,
                     LaunchOptions const& /*launching*/) {
  return lastTokenTopKHost(shape, type, query, key, attentionMask, visualMask, scale, keptRows, lastRow, workspace);
}

}  // namespace sts
