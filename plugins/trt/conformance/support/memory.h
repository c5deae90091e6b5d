// Memory that enqueue works on: the device's, or the host's for a library of STS_HOST_ENQUEUE.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sts::conformance {

// Devices that CUDA can use; 0 without a driver.
int deviceCount();

// Bytes between two guards of known bytes, aligned to 256.  Throws std::runtime_error where CUDA fails.
class Buffer {
 public:
  Buffer(size_t size, bool onDevice);
  ~Buffer();
  Buffer(Buffer const&) = delete;
  Buffer& operator=(Buffer const&) = delete;

  void* data() const { return mBytes + kGuard; }
  void write(std::vector<uint8_t> const& bytes);
  void fill(uint8_t byte);
  std::vector<uint8_t> read() const;
  bool guarded() const;  // nothing was written outside

 private:
  static constexpr size_t kGuard = 256;
  std::vector<uint8_t> readAll() const;

  size_t mSize;
  bool mOnDevice;
  uint8_t* mBytes;
};

}  // namespace sts::conformance
