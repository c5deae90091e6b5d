// What check_kernels feeds to the kernels.
#pragma once

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "../scalar.h"
#include "check_harness.h"

namespace {

enum class Kind { kNormal, kDuplicates, kIntegers };

char const* const kTypeNames[] = {"fp32", "fp16", "bf16"};

std::string nameOf(DataType type) { return kTypeNames[static_cast<int>(type)]; }

std::string nameOf(Kind kind) { return kind == Kind::kNormal ? "" : kind == Kind::kIntegers ? " integers" : " duplicates"; }

size_t sizeOf(DataType type) { return type == DataType::kFloat ? 4 : 2; }

// Rounds to nearest, ties to even; values within the type's range.
uint16_t roundTo(DataType type, float value) {
  uint32_t const bits = sts::bitsOf(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (type == DataType::kBfloat16) return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  if (magnitude < (113u << 23)) return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::lrint(std::fabs(value) * 16777216.0f)));
  return static_cast<uint16_t>(sign | ((magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13));
}

// [blocks, rows, width]; duplicates are drawn within blocks.
std::vector<char> values(DataType type, Kind kind, int64_t blocks, int64_t rows, int64_t width, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> all(static_cast<size_t>(blocks * rows * width));
  for (float& value : all) value = kind == Kind::kIntegers ? static_cast<float>(static_cast<int>(random() % 5) - 2) : normal(random);
  for (int64_t row = 0; kind == Kind::kDuplicates && row < blocks * rows; ++row) {
    int64_t const other = row / rows * rows + static_cast<int64_t>(random() % static_cast<uint64_t>(rows));
    if (random() % 2 != 0) std::copy_n(all.begin() + other * width, width, all.begin() + row * width);
  }
  std::vector<char> result(all.size() * sizeOf(type));
  for (size_t i = 0; i < all.size(); ++i) {
    uint16_t const rounded = roundTo(type, all[i]);
    std::memcpy(result.data() + i * sizeOf(type), type == DataType::kFloat ? static_cast<void const*>(&all[i]) : &rounded, sizeOf(type));
  }
  return result;
}

// Workspace of a call on the host.
class Scratch {
 public:
  explicit Scratch(size_t size) : mBytes(size + 256) {}

  void* get() { return mBytes.data() + (256 - reinterpret_cast<uintptr_t>(mBytes.data()) % 256); }

 private:
  std::vector<char> mBytes;
};

// A way to launch a call, with what it adds to names.  The host has one.
struct Way {
  std::string name;
  sts::LaunchOptions launching;
};

}  // namespace
