/* The kernels as C functions of plain integers and pointers, for ctypes.  Arguments as in repulsion_select.h and last_token_topk.h; types are
 * 0: float32, 1: float16, 2: bfloat16; results are 0: done, 1: invalid argument, 2: CUDA error.  *_host read and write host memory; the others
 * device memory, on `stream` (a cudaStream_t, or null).  Libraries without device code lack the latter. */
#ifndef STS_KERNELS_C_API_H
#define STS_KERNELS_C_API_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define STS_API __attribute__((visibility("default")))
#else
#define STS_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

STS_API size_t sts_repulsion_select_workspace(int64_t crops, int64_t rows, int64_t width, int64_t steps);
STS_API int32_t sts_repulsion_select_host(int64_t crops, int64_t rows, int64_t width, int64_t steps, int32_t type, void const* features,
                                          int64_t const* first, uint8_t const* candidates, float epsilon, int64_t* chosen, void* workspace);
STS_API int32_t sts_repulsion_select_from_gram_host(int64_t crops, int64_t rows, int64_t steps, float const* gram, int64_t const* first,
                                                    uint8_t const* candidates, float epsilon, int64_t* chosen, void* workspace);
STS_API int32_t sts_repulsion_select(int64_t crops, int64_t rows, int64_t width, int64_t steps, int32_t type, void const* features,
                                     int64_t const* first, uint8_t const* candidates, float epsilon, int64_t* chosen, void* workspace, void* stream);
STS_API int32_t sts_repulsion_select_from_gram(int64_t crops, int64_t rows, int64_t steps, float const* gram, int64_t const* first,
                                               uint8_t const* candidates, float epsilon, int64_t* chosen, void* workspace, void* stream);

STS_API size_t sts_last_token_topk_workspace(int64_t batch, int64_t heads, int64_t kv_heads, int64_t rows, int64_t head_dim, int64_t visual,
                                             int64_t visual_keep);
STS_API int32_t sts_last_token_topk_host(int64_t batch, int64_t heads, int64_t kv_heads, int64_t rows, int64_t head_dim, int64_t visual,
                                         int64_t visual_keep, int32_t type, void const* query, void const* key, int64_t const* attention_mask,
                                         uint8_t const* visual_mask, float scale, int64_t* kept_rows, int64_t* last_row, void* workspace);
STS_API int32_t sts_last_token_topk(int64_t batch, int64_t heads, int64_t kv_heads, int64_t rows, int64_t head_dim, int64_t visual,
                                    int64_t visual_keep, int32_t type, void const* query, void const* key, int64_t const* attention_mask,
                                    uint8_t const* visual_mask, float scale, int64_t* kept_rows, int64_t* last_row, void* workspace, void* stream);

#ifdef __cplusplus
}
#endif

#endif
