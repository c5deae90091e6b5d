// The CUDA runtime (major version 13) and the driver as far as ONNX Runtime needs more of them than success: a device, memory that
// is the host's, copies.  Kernels do nothing.  Layouts and numbers are those of cuda_runtime_api.h 13.0, which need not be installed.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "log.h"

using imitation::record;

namespace {

constexpr int kSuccess = 0;
constexpr int kVersion = 13000;
constexpr size_t kMemory = size_t{80} << 30;

struct Dim3 {
  unsigned x, y, z;
};

struct CallConfiguration {
  Dim3 grid, block;
  size_t sharedMemory;
  void* stream;
};

thread_local CallConfiguration pushed;

struct Allocations {
  std::mutex mutex;
  std::map<const char*, size_t> device;            // address -> bytes
  std::map<const void*, const char*> kernelNames;  // host function -> mangled name
};

Allocations& known() {
  static Allocations* all = new Allocations;
  return *all;
}

// Zeros: indices and lengths that a kernel should have written are valid.
int allocate(const char* function, void** pointer, size_t bytes) {
  *pointer = std::calloc(bytes ? bytes : 1, 1);
  record(imitation::kAllocate, function, bytes);
  std::lock_guard<std::mutex> lock(known().mutex);
  known().device[static_cast<const char*>(*pointer)] = bytes;
  return kSuccess;
}

int release(void* pointer) {
  std::lock_guard<std::mutex> lock(known().mutex);
  known().device.erase(static_cast<const char*>(pointer));
  std::free(pointer);
  return kSuccess;
}

bool onDevice(const void* pointer) {
  std::lock_guard<std::mutex> lock(known().mutex);
  const char* address = static_cast<const char*>(pointer);
  auto after = known().device.upper_bound(address);
  if (after == known().device.begin()) return false;
  --after;
  return address < after->first + after->second;
}

// What the host asks for no kernel has written.  It gets int64 0, 1, 2, ...: on every run the same, and indices of different rows.
void count(char* target, size_t bytes) {
  for (size_t offset = 0; offset < bytes; offset += sizeof(int64_t)) {
    const int64_t index = offset / sizeof(int64_t);
    std::memcpy(target + offset, &index, std::min(sizeof index, bytes - offset));
  }
}

imitation::Kind direction(const void* target, const void* source) {
  if (onDevice(source)) return onDevice(target) ? imitation::kOnDevice : imitation::kToHost;
  return onDevice(target) ? imitation::kToDevice : imitation::kOnHost;
}

void move(void* target, const void* source, size_t bytes) {
  if (direction(target, source) == imitation::kToHost)
    count(static_cast<char*>(target), bytes);
  else
    std::memmove(target, source, bytes);
}

int copy(const char* function, void* target, const void* source, size_t bytes) {
  record(direction(target, source), function, bytes);
  move(target, source, bytes);
  return kSuccess;
}

int launch(const void* function) {
  std::lock_guard<std::mutex> lock(known().mutex);
  auto found = known().kernelNames.find(function);
  record(imitation::kLaunch, found == known().kernelNames.end() ? "unknown kernel" : found->second);
  return kSuccess;
}

int name(const void* function, const char* mangled) {
  std::lock_guard<std::mutex> lock(known().mutex);
  known().kernelNames[function] = mangled;
  return kSuccess;
}

int attribute(int number) {
  switch (number) {
    case 1: return 1024;  // MaxThreadsPerBlock
    case 2:
    case 3: return 1024;        // MaxBlockDimX, Y
    case 4: return 64;          // MaxBlockDimZ
    case 5: return 2147483647;  // MaxGridDimX
    case 6:
    case 7: return 65535;  // MaxGridDimY, Z
    case 8: return 49152;  // MaxSharedMemoryPerBlock
    case 10: return 32;    // WarpSize
    case 12:
    case 82: return 65536;  // registers per block and per multiprocessor
    case 16: return 132;    // MultiProcessorCount
    case 31:
    case 41:
    case 95:
    case 115: return 1;        // concurrent kernels, unified addresses, cooperative launch, memory pools
    case 38: return 50 << 20;  // L2CacheSize
    case 39: return 2048;      // MaxThreadsPerMultiProcessor
    case 75: return 9;         // ComputeCapabilityMajor
    case 76: return 0;         // ComputeCapabilityMinor
    case 81: return 233472;    // MaxSharedMemoryPerMultiprocessor
    case 97: return 232448;    // MaxSharedMemoryPerBlockOptin
    case 106: return 32;       // MaxBlocksPerMultiprocessor
    case 111: return 1024;     // ReservedSharedMemoryPerBlock
    default: return 0;
  }
}

}  // namespace

// Device

STS_EXPORTED int cuInit(unsigned) { return kSuccess; }
STS_EXPORTED int cuDeviceGetCount(int* count) { return *count = 1, kSuccess; }
STS_EXPORTED int cuDriverGetVersion(int* version) { return *version = kVersion, kSuccess; }
STS_EXPORTED int cudaDriverGetVersion(int* version) { return *version = kVersion, kSuccess; }
STS_EXPORTED int cudaRuntimeGetVersion(int* version) { return *version = kVersion, kSuccess; }
STS_EXPORTED int cudaGetDeviceCount(int* count) { return *count = 1, kSuccess; }
STS_EXPORTED int cudaGetDevice(int* device) { return *device = 0, kSuccess; }
STS_EXPORTED int cudaDeviceGetAttribute(int* value, int number, int) { return *value = attribute(number), kSuccess; }

STS_EXPORTED int cudaGetDeviceProperties(char* properties, int) {
  std::memset(properties, 0, 1008);
  std::strcpy(properties, "imitation of an H100");
  auto number = [&](size_t offset, int value) { std::memcpy(properties + offset, &value, sizeof value); };
  auto size = [&](size_t offset, size_t value) { std::memcpy(properties + offset, &value, sizeof value); };
  size(288, kMemory);          // totalGlobalMem
  size(296, attribute(8));     // sharedMemPerBlock
  number(304, attribute(12));  // regsPerBlock
  number(308, attribute(10));  // warpSize
  number(320, attribute(1));   // maxThreadsPerBlock
  for (int d = 0; d < 3; ++d) {
    number(324 + 4 * d, attribute(2 + d));  // maxThreadsDim
    number(336 + 4 * d, attribute(5 + d));  // maxGridSize
  }
  size(352, 65536);             // totalConstMem
  number(360, attribute(75));   // major
  number(364, attribute(76));   // minor
  number(384, attribute(16));   // multiProcessorCount
  number(560, 1);               // concurrentKernels
  number(588, 1);               // unifiedAddressing
  number(596, attribute(38));   // l2CacheSize
  number(604, attribute(39));   // maxThreadsPerMultiProcessor
  size(624, attribute(81));     // sharedMemPerMultiprocessor
  number(632, attribute(82));   // regsPerMultiprocessor
  number(668, 1);               // cooperativeLaunch
  size(672, attribute(97));     // sharedMemPerBlockOptin
  number(688, attribute(106));  // maxBlocksPerMultiProcessor
  size(696, attribute(111));    // reservedSharedMemPerBlock
  number(720, 1);               // memoryPoolsSupported
  number(748, 1);               // clusterLaunch
  return kSuccess;
}

STS_EXPORTED int cudaMemGetInfo(size_t* free, size_t* total) { return *free = *total = kMemory, kSuccess; }
STS_EXPORTED const char* cudaGetErrorName(int) { return "error of the imitation"; }
STS_EXPORTED const char* cudaGetErrorString(int) { return "error of the imitation"; }

// Memory

STS_EXPORTED int cudaMalloc(void** pointer, size_t bytes) { return allocate("cudaMalloc", pointer, bytes); }
STS_EXPORTED int cudaMallocAsync(void** pointer, size_t bytes, void*) { return allocate("cudaMallocAsync", pointer, bytes); }
STS_EXPORTED int cudaMallocFromPoolAsync(void** pointer, size_t bytes, void*, void*) { return allocate("cudaMallocFromPoolAsync", pointer, bytes); }
STS_EXPORTED int cudaFree(void* pointer) { return release(pointer); }
STS_EXPORTED int cudaFreeAsync(void* pointer, void*) { return release(pointer); }

STS_EXPORTED int cudaMallocHost(void** pointer, size_t bytes) {
  record(imitation::kAllocate, "cudaMallocHost", bytes);
  return *pointer = std::calloc(bytes ? bytes : 1, 1), kSuccess;
}
STS_EXPORTED int cudaHostAlloc(void** pointer, size_t bytes, unsigned) { return cudaMallocHost(pointer, bytes); }
STS_EXPORTED int cudaFreeHost(void* pointer) { return std::free(pointer), kSuccess; }

STS_EXPORTED int cudaPointerGetAttributes(char* attributes, void* pointer) {
  const int types[] = {onDevice(pointer) ? 2 : 0, 0};  // type (device or unregistered), device
  std::memset(attributes, 0, 88);
  std::memcpy(attributes, types, sizeof types);
  std::memcpy(attributes + (types[0] ? 8 : 16), &pointer, sizeof pointer);
  return kSuccess;
}

STS_EXPORTED int cudaMemcpy(void* target, const void* source, size_t bytes, int) {
  record(imitation::kSynchronize, "cudaMemcpy");
  return copy("cudaMemcpy", target, source, bytes);
}
STS_EXPORTED int cudaMemcpyAsync(void* target, const void* source, size_t bytes, int, void*) {
  return copy("cudaMemcpyAsync", target, source, bytes);
}
STS_EXPORTED int cudaMemcpy2DAsync(char* target, size_t targetPitch, const char* source, size_t sourcePitch, size_t width, size_t height, int,
                                   void*) {
  record(direction(target, source), "cudaMemcpy2DAsync", width * height);
  for (size_t row = 0; row < height; ++row) move(target + row * targetPitch, source + row * sourcePitch, width);
  return kSuccess;
}
STS_EXPORTED int cudaMemset(void* target, int value, size_t bytes) {
  record(imitation::kMemset, "cudaMemset", bytes);
  return std::memset(target, value, bytes), kSuccess;
}
STS_EXPORTED int cudaMemsetAsync(void* target, int value, size_t bytes, void*) {
  record(imitation::kMemset, "cudaMemsetAsync", bytes);
  return std::memset(target, value, bytes), kSuccess;
}

// Streams and events

STS_EXPORTED int cudaStreamIsCapturing(void*, int* status) { return *status = 0, kSuccess; }
STS_EXPORTED int cudaStreamSynchronize(void*) { return record(imitation::kSynchronize, "cudaStreamSynchronize"), kSuccess; }
STS_EXPORTED int cudaDeviceSynchronize() { return record(imitation::kSynchronize, "cudaDeviceSynchronize"), kSuccess; }
STS_EXPORTED int cudaEventSynchronize(void*) { return record(imitation::kSynchronize, "cudaEventSynchronize"), kSuccess; }
STS_EXPORTED int cudaEventElapsedTime(float* milliseconds, void*, void*) { return *milliseconds = 1, kSuccess; }

// Kernels

STS_EXPORTED void** __cudaRegisterFatBinary(void*) { return static_cast<void**>(imitation::newHandle()); }
STS_EXPORTED void __cudaRegisterFunction(void**, const char* function, char*, const char* mangled, int, void*, void*, void*, void*, int*) {
  name(function, mangled);
}
STS_EXPORTED int __cudaGetKernel(const void** kernel, const void* function) { return *kernel = function, kSuccess; }
STS_EXPORTED int cudaLibraryGetKernel(void** kernel, void*, const char* mangled) {
  *kernel = imitation::newHandle();
  return name(*kernel, strdup(mangled));
}
STS_EXPORTED unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t sharedMemory, void* stream) {
  pushed = {grid, block, sharedMemory, stream};
  return 0;
}
STS_EXPORTED int __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* sharedMemory, void** stream) {
  *grid = pushed.grid, *block = pushed.block, *sharedMemory = pushed.sharedMemory, *stream = pushed.stream;
  return kSuccess;
}
STS_EXPORTED int __cudaLaunchKernel(const void* kernel, Dim3, Dim3, void**, size_t, void*) { return launch(kernel); }
STS_EXPORTED int cudaLaunchKernel(const void* function, Dim3, Dim3, void**, size_t, void*) { return launch(function); }
STS_EXPORTED int cudaLaunchCooperativeKernel(const void* function, Dim3, Dim3, void**, size_t, void*) { return launch(function); }
STS_EXPORTED int cudaLaunchKernelExC(const void*, const void* function, void**) { return launch(function); }
STS_EXPORTED int cudaGraphLaunch(void*, void*) { return record(imitation::kLaunch, "a graph"), kSuccess; }

STS_EXPORTED int cudaFuncGetAttributes(char* attributes, const void*) {
  std::memset(attributes, 0, 144);
  // maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion, cacheModeCA, maxDynamicSharedSizeBytes
  const int values[] = {1024, 32, 90, 90, 0, attribute(97)};
  std::memcpy(attributes + 24, values, sizeof values);
  return kSuccess;
}
STS_EXPORTED int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
  return *blocks = 2, kSuccess;
}
STS_EXPORTED int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) { return *blocks = 2, kSuccess; }
STS_EXPORTED int cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long, int* status) {
  *function = reinterpret_cast<void*>(&cuInit);  // returns success, whatever it is called with
  if (status) *status = 0;
  return kSuccess;
}
