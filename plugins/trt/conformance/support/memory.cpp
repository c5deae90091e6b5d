#include "memory.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace sts::conformance {
namespace {

constexpr uint8_t kGuardByte = 0xA5;

void require(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

}  // namespace

int deviceCount() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

Buffer::Buffer(size_t size, bool onDevice) : mSize(size), mOnDevice(onDevice), mBytes(nullptr) {
  size_t const all = (size + 255) / 256 * 256 + 2 * kGuard;
  void* memory = nullptr;
  if (onDevice) {
    require(cudaMalloc(&memory, all));
    require(cudaMemset(memory, kGuardByte, all));
  } else {
    memory = std::aligned_alloc(256, all);
    if (memory == nullptr) throw std::bad_alloc();
    std::memset(memory, kGuardByte, all);
  }
  mBytes = static_cast<uint8_t*>(memory);
}

Buffer::~Buffer() {
  if (mOnDevice) {
    static_cast<void>(cudaFree(mBytes));
  } else {
    std::free(mBytes);
  }
}

void Buffer::write(std::vector<uint8_t> const& bytes) {
  if (bytes.size() != mSize) throw std::logic_error("a buffer is written as a whole");
  if (mOnDevice) {
    require(cudaMemcpy(data(), bytes.data(), mSize, cudaMemcpyHostToDevice));
  } else {
    std::copy(bytes.begin(), bytes.end(), mBytes + kGuard);
  }
}

void Buffer::fill(uint8_t byte) { write(std::vector<uint8_t>(mSize, byte)); }

std::vector<uint8_t> Buffer::readAll() const {
  std::vector<uint8_t> bytes(mSize + 2 * kGuard);
  if (mOnDevice) {
    require(cudaMemcpy(bytes.data(), mBytes, bytes.size(), cudaMemcpyDeviceToHost));
  } else {
    std::copy(mBytes, mBytes + bytes.size(), bytes.begin());
  }
  return bytes;
}

std::vector<uint8_t> Buffer::read() const {
  std::vector<uint8_t> const all = readAll();
  return {all.begin() + kGuard, all.end() - kGuard};
}

bool Buffer::guarded() const {
  std::vector<uint8_t> const all = readAll();
  auto const untouched = [](uint8_t byte) { return byte == kGuardByte; };
  return std::all_of(all.begin(), all.begin() + kGuard, untouched) && std::all_of(all.end() - kGuard, all.end(), untouched);
}

}  // namespace sts::conformance
