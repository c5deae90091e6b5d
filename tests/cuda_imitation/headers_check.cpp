// What the imitation says of the device, read through CUDA's own declarations: one "name value" a line.
#include <cuda_runtime_api.h>

#include <cstdio>

int main() {
  cudaDeviceProp properties;
  cudaFuncAttributes function;
  cudaPointerAttributes pointer;
  void* memory = nullptr;
  int value = 0;
  auto say = [](const char* name, long long number) { std::printf("%s %lld\n", name, number); };
  auto attribute = [&](const char* name, cudaDeviceAttr which) {
    cudaDeviceGetAttribute(&value, which, 0);
    say(name, value);
  };
  cudaGetDeviceProperties(&properties, 0);
  cudaFuncGetAttributes(&function, static_cast<const void*>(&value));
  cudaMalloc(&memory, 64);
  cudaPointerGetAttributes(&pointer, memory);
  say("version", CUDART_VERSION);
  say("sizes", sizeof properties == 1008 && sizeof function == 144 && sizeof pointer == 88);
  say("major", properties.major);
  say("minor", properties.minor);
  say("multiProcessorCount", properties.multiProcessorCount);
  say("totalGlobalMem", static_cast<long long>(properties.totalGlobalMem >> 30));
  say("warpSize", properties.warpSize);
  say("maxThreadsPerBlock", properties.maxThreadsPerBlock);
  say("maxThreadsPerMultiProcessor", properties.maxThreadsPerMultiProcessor);
  say("maxGridSize", properties.maxGridSize[1]);
  say("sharedMemPerBlock", static_cast<long long>(properties.sharedMemPerBlock));
  say("sharedMemPerBlockOptin", static_cast<long long>(properties.sharedMemPerBlockOptin));
  say("sharedMemPerMultiprocessor", static_cast<long long>(properties.sharedMemPerMultiprocessor));
  say("l2CacheSize", properties.l2CacheSize >> 20);
  attribute("attribute major", cudaDevAttrComputeCapabilityMajor);
  attribute("attribute warpSize", cudaDevAttrWarpSize);
  attribute("attribute multiProcessorCount", cudaDevAttrMultiProcessorCount);
  attribute("attribute sharedMemPerBlockOptin", cudaDevAttrMaxSharedMemoryPerBlockOptin);
  attribute("attribute maxBlocksPerMultiprocessor", cudaDevAttrMaxBlocksPerMultiprocessor);
  attribute("attribute reservedSharedMemPerBlock", cudaDevAttrReservedSharedMemoryPerBlock);
  attribute("attribute cooperativeLaunch", cudaDevAttrCooperativeLaunch);
  say("function maxThreadsPerBlock", function.maxThreadsPerBlock);
  say("function maxDynamicSharedSizeBytes", function.maxDynamicSharedSizeBytes);
  say("pointer type", pointer.type == cudaMemoryTypeDevice && pointer.devicePointer == memory);
}
