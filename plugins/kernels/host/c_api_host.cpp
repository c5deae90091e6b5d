#include "../c_api.h"
#include "../last_token_topk.h"
#include "../repulsion_select.h"

static_assert(sizeof(bool) == sizeof(uint8_t), "masks are passed as bytes");

extern "C" {

size_t sts_repulsion_select_workspace(int64_t crops, int64_t rows, int64_t width, int64_t steps) {
  return sts::repulsionSelectWorkspace({crops, rows, width, steps});
}

int32_t sts_repulsion_select_host(int64_t crops, int64_t rows, int64_t width, int64_t steps, int32_t type, void const* features, int64_t const* first,
                                  uint8_t const* candidates, float epsilon, int64_t* chosen, void* workspace) {
  return static_cast<int32_t>(sts::repulsionSelectHost({crops, rows, width, steps}, static_cast<sts::DataType>(type), features, first,
                                                       reinterpret_cast<bool const*>(candidates), epsilon, chosen, workspace));
}

int32_t sts_repulsion_select_from_gram_host(int64_t crops, int64_t rows, int64_t steps, float const* gram, int64_t const* first,
                                            uint8_t const* candidates, float epsilon, int64_t* chosen, void* workspace) {
  return static_cast<int32_t>(
      sts::repulsionSelectFromGramHost({crops, rows, 1, steps}, gram, first, reinterpret_cast<bool const*>(candidates), epsilon, chosen, workspace));
}

size_t sts_last_token_topk_workspace(int64_t batch, int64_t heads, int64_t kv_heads, int64_t rows, int64_t head_dim, int64_t visual,
                                     int64_t visual_keep) {
  return sts::lastTokenTopKWorkspace({batch, heads, kv_heads, rows, head_dim, visual, visual_keep});
}

int32_t sts_last_token_topk_host(int64_t batch, int64_t heads, int64_t kv_heads, int64_t rows, int64_t head_dim, int64_t visual, int64_t visual_keep,
                                 int32_t type, void const* query, void const* key, int64_t const* attention_mask, uint8_t const* visual_mask,
                                 float scale, int64_t* kept_rows, int64_t* last_row, void* workspace) {
  return static_cast<int32_t>(sts::lastTokenTopKHost({batch, heads, kv_heads, rows, head_dim, visual, visual_keep}, static_cast<sts::DataType>(type),
                                                     query, key, attention_mask, reinterpret_cast<bool const*>(visual_mask), scale, kept_rows,
                                                     last_row, workspace));
}

}  // extern "C"
