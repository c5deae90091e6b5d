#include "workspace.h"

#include <memory>

#include "status.h"

namespace sts::onnxruntime {
namespace {

constexpr size_t kAlignment = 256;  // of the kernels' workspace; the host's allocator aligns to less

// nullptr if there is not enough memory.
void* allocate(Runtime const& runtime, OrtKernelContext const& context, OrtAllocator* allocator, size_t bytes) noexcept try {
#if ORT_API_VERSION >= 28
  OrtSyncStream* stream = nullptr;
  if (runtime.streamApi != nullptr && allocator->AllocOnStream != nullptr) {
    Result const result(*runtime.api, runtime.streamApi->KernelContext_GetSyncStream(&context, &stream));
    if (stream != nullptr) return allocator->AllocOnStream(allocator, bytes, stream);
  }
#else
  static_cast<void>(runtime);
  static_cast<void>(context);
#endif
  return allocator->Alloc(allocator, bytes);
} catch (...) {  // the arenas throw through this C function
  return nullptr;
}

}  // namespace

Workspace::Workspace(Runtime const& runtime, Operator const& op, OrtKernelContext const& context, OrtValue const& near, size_t bytes,
                     Reason& reason) noexcept
    : mApi(*runtime.api) {
  OrtMemoryInfo const* where = nullptr;
  if (!succeeded(mApi, mApi.GetTensorMemoryInfo(&near, &where), op, reason) ||
      !succeeded(mApi, mApi.KernelContext_GetAllocator(&context, where, &mAllocator), op, reason))
    return;
  size_t space = bytes + kAlignment;
  mMemory = allocate(runtime, context, mAllocator, space);
  mPointer = mMemory;
  if (mMemory == nullptr || std::align(kAlignment, bytes, mPointer, space) == nullptr)
    reason.say("sts::%s: out of memory: %zu bytes of workspace", op.name, bytes);
}

Workspace::~Workspace() {
  if (mMemory != nullptr) mAllocator->Free(mAllocator, mMemory);
  if (mAllocator != nullptr) mApi.ReleaseAllocator(mAllocator);
}

}  // namespace sts::onnxruntime
