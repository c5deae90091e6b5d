// Temporary memory for one call of a kernel, from the session's own allocator.
#pragma once

#include "onnxruntime.h"
#include "sizes.h"

namespace sts::onnxruntime {

// The allocator's memory is reused in the order of the stream, so it may be given back as soon as the kernels are enqueued.  That holds between the
// streams of several runs, too, where the runtime tells which stream it allocates for (Runtime::streamApi).
class Workspace {
 public:
  // Memory where `near` lies.  Without it pointer() is nullptr, and the reason is set.
  Workspace(Runtime const& runtime, Operator const& op, OrtKernelContext const& context, OrtValue const& near, size_t bytes, Reason& reason) noexcept;
  Workspace(Workspace const&) = delete;
  Workspace& operator=(Workspace const&) = delete;
  ~Workspace();

  void* pointer() const noexcept { return mPointer; }  // aligned as the kernels want it

 private:
  OrtApi const& mApi;
  OrtAllocator* mAllocator = nullptr;
  void* mMemory = nullptr;
  void* mPointer = nullptr;
};

}  // namespace sts::onnxruntime
