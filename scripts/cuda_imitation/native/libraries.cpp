// cuBLAS and cuDNN as far as ONNX Runtime needs more of them than success and a handle.
#include <cstring>

#include "log.h"

using imitation::record;

// cuBLAS

STS_EXPORTED const char* cublasGetStatusName(int) { return "status of the imitation"; }
STS_EXPORTED const char* cublasGetStatusString(int) { return "status of the imitation"; }
STS_EXPORTED int cublasGetMathMode(void*, int* mode) { return *mode = 0, 0; }

STS_EXPORTED int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void* results, int* count) {
  std::memset(results, 0, 96);  // one: an algorithm that needs no workspace
  return *count = 1, 0;
}

// cuDNN

STS_EXPORTED size_t cudnnGetVersion() { return 91300; }
STS_EXPORTED const char* cudnnGetErrorString(int) { return "status of the imitation"; }
STS_EXPORTED void cudnnGetLastErrorString(char* text, size_t size) {
  if (size) *text = 0;
}
STS_EXPORTED int cudnnGetReductionWorkspaceSize(void*, void*, void*, void*, size_t* bytes) { return *bytes = 0, 0; }
STS_EXPORTED int cudnnGetReductionIndicesSize(void*, void*, void*, void*, size_t* bytes) { return *bytes = 0, 0; }
STS_EXPORTED int cudnnGetConvolutionForwardWorkspaceSize(void*, void*, void*, void*, void*, int, size_t* bytes) { return *bytes = 0, 0; }

// The graph interface: https://docs.nvidia.com/deeplearning/cudnn/backend/latest/api/cudnn-graph-library.html

namespace {
constexpr int kTypeInt64 = 3, kTypeDescriptor = 15, kTypeInt32 = 23;
constexpr int kKnobChoices = 302, kExecutionPlan = 5;
}  // namespace

STS_EXPORTED int cudnnBackendCreateDescriptor(int kind, void** descriptor) {
  if (kind == kExecutionPlan) record(imitation::kPlan, "cuDNN plan");
  return *descriptor = imitation::newHandle(), 0;
}

// One engine, without knobs and notes, that needs no memory.
STS_EXPORTED int cudnnBackendGetAttribute(void*, int attribute, int type, int64_t requested, int64_t* count, void* values) {
  const bool number = type == kTypeInt64 || type == kTypeInt32;
  if (count) *count = number || (type == kTypeDescriptor && attribute != kKnobChoices);
  if (number && requested && values) std::memset(values, 0, type == kTypeInt64 ? 8 : 4);
  return 0;
}
