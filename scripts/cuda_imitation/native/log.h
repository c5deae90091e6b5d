// What was asked of the imitation, in order.
#pragma once

#include <cstddef>
#include <cstdint>

#define STS_EXPORTED extern "C" __attribute__((visibility("default")))

namespace imitation {

enum Kind : int32_t {
  kLaunch = 0,    // of a kernel; its mangled name
  kCall = 1,      // of a library's function; its name
  kToDevice = 2,  // copies, with their bytes
  kToHost = 3,
  kOnDevice = 4,
  kOnHost = 5,
  kMemset = 6,       // with its bytes
  kSynchronize = 7,  // the host waits; the function's name
  kAllocate = 8,     // with its bytes; the function's name
  kPlan = 9,         // cuDNN prepares an execution plan
};

// Keeps the pointer to the name: it has to live on.
void record(Kind kind, const char* name, size_t bytes = 0);

// An address that is not null, and not that of another object.
void* newHandle();

}  // namespace imitation
