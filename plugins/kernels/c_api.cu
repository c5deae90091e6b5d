#include "c_api.h"
#include "last_token_topk.h"
#include "repulsion_select.h"

extern "C" {

int32_t sts_repulsion_select(int64_t crops, int64_t rows, int64_t width, int64_t steps, int32_t type, void const* features, int64_t const* first,
                             uint8_t const* candidates, float epsilon, int64_t* chosen, void* workspace, void* stream) {
  return static_cast<int32_t>(sts::repulsionSelect({crops, rows, width, steps}, static_cast<sts::DataType>(type), features, first,
                                                   reinterpret_cast<bool const*>(candidates), epsilon, chosen, workspace,
                                                   static_cast<cudaStream_t>(stream)));
}

int32_t sts_repulsion_select_from_gram(int64_t crops, int64_t rows, int64_t steps, float const* gram, int64_t const* first, uint8_t const* candidates,
                                       float epsilon, int64_t* chosen, void* workspace, void* stream) {
  return static_cast<int32_t>(sts::repulsionSelectFromGram({crops, rows, 1, steps}, gram, first, reinterpret_cast<bool const*>(candidates), epsilon,
                                                           chosen, workspace, static_cast<cudaStream_t>(stream)));
}

int32_t sts_last_token_topk(int64_t batch, int64_t heads, int64_t kv_heads, int64_t rows, int64_t head_dim, int64_t visual, int64_t visual_keep,
                            int32_t type, void const* query, void const* key, int64_t const* attention_mask, uint8_t const* visual_mask, float scale,
                            int64_t* kept_rows, int64_t* last_row, void* workspace, void* stream) {
  return static_cast<int32_t>(sts::lastTokenTopK({batch, heads, kv_heads, rows, head_dim, visual, visual_keep}, static_cast<sts::DataType>(type),
                                                 query, key, attention_mask, reinterpret_cast<bool const*>(visual_mask), scale, kept_rows, last_row,
                                                 workspace, static_cast<cudaStream_t>(stream)));
}

}  // extern "C"
