// Checks the device's kernels against the host's, to the index, and times them.  Prints one JSON object; exits with 1 if anything differs.
//
//   nvcc -std=c++17 -O3 -arch=native -o check_kernels check/check_kernels.cu repulsion_select.cu last_token_topk.cu host/*.cpp
//   check_kernels [--checks-only] [--host-only]
//
// --checks-only: no timing, smaller shapes; for compute-sanitizer.  --host-only: the host's kernels on both sides, which checks this program; all that
// a build by g++ (-x c++) can do.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "../last_token_topk.h"
#include "../repulsion_select.h"
#include "../scalar.h"
#include "check_harness.h"

namespace {

// ---- Inputs ----

enum class Kind { kNormal, kDuplicates, kIntegers };

char const* const kTypeNames[] = {"fp32", "fp16", "bf16"};

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

void const* at(Buffer const& buffer) { return buffer.get(); }

// ---- Stage 1 ----

constexpr float kEpsilon = 1e-6f;

Status select(sts::RepulsionSelectShape const& shape, DataType type, Buffer const& x, int64_t const* first, bool const* candidates, Buffer& chosen,
              Buffer& workspace, cudaStream_t stream) {
  auto* const out = static_cast<int64_t*>(chosen.get());
#if defined(__CUDACC__)
  if (!options.hostOnly) return sts::repulsionSelect(shape, type, at(x), first, candidates, kEpsilon, out, workspace.get(), stream);
#endif
  static_cast<void>(stream);
  return sts::repulsionSelectHost(shape, type, at(x), first, candidates, kEpsilon, out, workspace.get());
}

void checkRepulsion(sts::RepulsionSelectShape const& shape, DataType type, Kind kind, bool masked, bool anchored) {
  std::string const name = "repulsion " + std::to_string(shape.crops) + "x" + std::to_string(shape.rows) + "x" + std::to_string(shape.width) + "/" +
                           std::to_string(shape.steps) + " " + kTypeNames[static_cast<int>(type)] + (masked ? " masked" : "") +
                           (anchored ? "" : " mean") +
                           (kind == Kind::kNormal     ? ""
                            : kind == Kind::kIntegers ? " integers"
                                                      : " duplicates");
  std::vector<char> const features = values(type, kind, shape.crops, shape.rows, shape.width, static_cast<uint64_t>(shape.rows + shape.steps));
  std::vector<int64_t> first(static_cast<size_t>(shape.crops));
  for (size_t crop = 0; crop < first.size(); ++crop) first[crop] = static_cast<int64_t>(crop * 7919 + 5) % shape.rows;
  std::vector<char> candidates(static_cast<size_t>(shape.crops * shape.rows), 1);
  for (size_t i = 0; masked && i < candidates.size(); ++i) candidates[i] = i % 3 != 1;

  std::vector<int64_t> expected(static_cast<size_t>(shape.crops * shape.steps));
  std::vector<char> scratch(sts::repulsionSelectWorkspace(shape) + 256);
  void* const aligned = scratch.data() + (256 - reinterpret_cast<uintptr_t>(scratch.data()) % 256);
  check(sts::repulsionSelectHost(shape, type, features.data(), anchored ? first.data() : nullptr,
                                 masked ? reinterpret_cast<bool const*>(candidates.data()) : nullptr, kEpsilon, expected.data(),
                                 aligned) == Status::kOk,
        name + ": refused on the host");

  Buffer const x(features.size(), features.data()), anchor(first.size() * 8, first.data()), mask(candidates.size(), candidates.data());
  Buffer chosen(expected.size() * 8), workspace(sts::repulsionSelectWorkspace(shape));
  auto const* const anchors = anchored ? static_cast<int64_t const*>(at(anchor)) : nullptr;
  auto const* const allowed = masked ? static_cast<bool const*>(at(mask)) : nullptr;
  Call const call = [&](cudaStream_t stream) { return select(shape, type, x, anchors, allowed, chosen, workspace, stream); };
  compare(name, call, workspace, {{chosen, expected}});
}

void checkGram(int64_t rows, int64_t steps) {
  std::string const name = "repulsion from gram " + std::to_string(rows) + "/" + std::to_string(steps);
  sts::RepulsionSelectShape const shape{1, rows, 1, steps};
  std::vector<float> points(static_cast<size_t>(rows) * 2), gram(static_cast<size_t>(rows * rows));
  std::mt19937_64 random(static_cast<uint64_t>(rows));
  for (float& value : points) value = static_cast<float>(static_cast<int>(random() % 41) - 20) * 0.25f;
  for (size_t i = 0; i < static_cast<size_t>(rows); ++i) {
    for (size_t j = 0; j < static_cast<size_t>(rows); ++j) {
      gram[i * static_cast<size_t>(rows) + j] = points[2 * i] * points[2 * j] + points[2 * i + 1] * points[2 * j + 1];
    }
  }
  int64_t const first = rows - 1;
  std::vector<int64_t> expected(static_cast<size_t>(steps));
  std::vector<char> scratch(sts::repulsionSelectWorkspace(shape) + 256);
  void* const aligned = scratch.data() + (256 - reinterpret_cast<uintptr_t>(scratch.data()) % 256);
  check(sts::repulsionSelectFromGramHost(shape, gram.data(), &first, nullptr, kEpsilon, expected.data(), aligned) == Status::kOk,
        name + ": refused on the host");
  Buffer const matrix(gram.size() * 4, gram.data()), anchor(8, &first);
  Buffer chosen(expected.size() * 8), workspace(sts::repulsionSelectWorkspace(shape));
  auto const* const products = static_cast<float const*>(at(matrix));
  auto const* const anchors = static_cast<int64_t const*>(at(anchor));
  auto* const out = static_cast<int64_t*>(chosen.get());
  Call const call = [&](cudaStream_t stream) {
#if defined(__CUDACC__)
    if (!options.hostOnly) return sts::repulsionSelectFromGram(shape, products, anchors, nullptr, kEpsilon, out, workspace.get(), stream);
#endif
    static_cast<void>(stream);
    return sts::repulsionSelectFromGramHost(shape, products, anchors, nullptr, kEpsilon, out, workspace.get());
  };
  compare(name, call, workspace, {{chosen, expected}});
}

// ---- Stage 2 ----

Status choose(sts::LastTokenTopKShape const& shape, DataType type, Buffer const& query, Buffer const& key, Buffer const& mask, Buffer const& visual,
              float scale, Buffer& kept, Buffer& last, Buffer& workspace, cudaStream_t stream) {
  auto const* const present = static_cast<int64_t const*>(at(mask));
  auto const* const seen = static_cast<bool const*>(at(visual));
  auto* const keptRows = static_cast<int64_t*>(kept.get());
  auto* const lastRow = static_cast<int64_t*>(last.get());
#if defined(__CUDACC__)
  if (!options.hostOnly) return sts::lastTokenTopK(shape, type, at(query), at(key), present, seen, scale, keptRows, lastRow, workspace.get(), stream);
#endif
  static_cast<void>(stream);
  return sts::lastTokenTopKHost(shape, type, at(query), at(key), present, seen, scale, keptRows, lastRow, workspace.get());
}

struct Request {
  std::vector<char> query, key, visual;
  std::vector<int64_t> mask;
};

// padding: rows after the last real one, of every other request.  visualRows: those of the mask, not what the shape announces.
Request request(sts::LastTokenTopKShape const& shape, DataType type, Kind kind, int64_t padding, int64_t visualRows) {
  Request made;
  made.query = values(type, kind, shape.batch * shape.heads, shape.rows, shape.headDim, 1);
  made.key = values(type, kind, shape.batch * shape.kvHeads, shape.rows, shape.headDim, 2);
  int64_t const before = std::min<int64_t>(5, shape.rows - visualRows);
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t row = 0; row < shape.rows; ++row) {
      made.mask.push_back(row < shape.rows - padding * (b % 2) ? 1 : 0);
      made.visual.push_back(before <= row && row < before + visualRows ? 1 : 0);
    }
  }
  return made;
}

void checkTopK(sts::LastTokenTopKShape const& shape, DataType type, Kind kind, int64_t padding, int64_t visualRows) {
  std::string const name = "topk " + std::to_string(shape.batch) + "x" + std::to_string(shape.heads) + "/" + std::to_string(shape.kvHeads) + "x" +
                           std::to_string(shape.rows) + "x" + std::to_string(shape.headDim) + " " + std::to_string(shape.visual) + "->" +
                           std::to_string(shape.visualKeep) + " " + kTypeNames[static_cast<int>(type)] +
                           (kind == Kind::kNormal     ? ""
                            : kind == Kind::kIntegers ? " integers"
                                                      : " duplicates");
  Request const made = request(shape, type, kind, padding, visualRows);
  float const scale = 1.0f / std::sqrt(static_cast<float>(shape.headDim));
  std::vector<int64_t> kept(static_cast<size_t>(shape.batch * (shape.rows - shape.visual + shape.visualKeep))),
      last(static_cast<size_t>(shape.batch));
  std::vector<char> scratch(sts::lastTokenTopKWorkspace(shape) + 256);
  void* const aligned = scratch.data() + (256 - reinterpret_cast<uintptr_t>(scratch.data()) % 256);
  check(sts::lastTokenTopKHost(shape, type, made.query.data(), made.key.data(), made.mask.data(), reinterpret_cast<bool const*>(made.visual.data()),
                               scale, kept.data(), last.data(), aligned) == Status::kOk,
        name + ": refused on the host");
  Buffer const query(made.query.size(), made.query.data()), key(made.key.size(), made.key.data());
  Buffer const mask(made.mask.size() * 8, made.mask.data()), visual(made.visual.size(), made.visual.data());
  Buffer keptRows(kept.size() * 8), lastRow(last.size() * 8), workspace(sts::lastTokenTopKWorkspace(shape));
  Call const call = [&](cudaStream_t stream) { return choose(shape, type, query, key, mask, visual, scale, keptRows, lastRow, workspace, stream); };
  compare(name, call, workspace, {{keptRows, kept}, {lastRow, last}});
}

// ---- All of it ----

void checkAll() {
  bool const all = !options.checksOnly && !options.hostOnly;
  for (DataType const type : {DataType::kFloat, DataType::kHalf, DataType::kBfloat16}) {
    bool const brief = options.hostOnly && type != DataType::kHalf;
    for (Kind const kind : {Kind::kNormal, Kind::kDuplicates, Kind::kIntegers}) {
      if (options.hostOnly && kind != (brief ? Kind::kDuplicates : Kind::kIntegers)) continue;
      checkRepulsion({1, 1, 8, 1}, type, kind, false, true);
      checkRepulsion({3, 31, 5, 31}, type, kind, true, true);
      checkRepulsion({2, 65, 72, 65}, type, kind, false, false);
      checkRepulsion({1, 576, all ? 1024 : 24, 96}, type, kind, false, true);
      checkRepulsion({5, 576, all ? 256 : 9, 96}, type, kind, true, false);
      checkRepulsion({2, 1025, all ? 63 : 5, 40}, type, kind, false, true);
      checkTopK({1, 32, 32, 131, 128, 96, 32}, type, kind, 0, 96);
      checkTopK({1, 28, 4, 700, all ? 128 : 16, 576, 64}, type, kind, 0, 576);
      checkTopK({3, 8, 1, 200, 36, 100, 30}, type, kind, 40, 100);
      checkTopK({2, 4, 2, 90, 64, 60, 20}, type, kind, 3, 41);
      checkTopK({4, 32, 32, 1, 128, 1, 1}, type, kind, 0, 0);
      checkTopK({2, 32, 8, 77, 128, 1, 1}, type, kind, 9, 0);
    }
    if (brief) continue;
    checkRepulsion({1, 2100, all ? 32 : 5, 60}, type, Kind::kDuplicates, false, true);
    checkRepulsion({1, 2880, all ? 128 : 4, all ? 480 : 60}, type, Kind::kNormal, false, true);
    checkRepulsion({1, 4096, all ? 64 : 2, 50}, type, Kind::kNormal, true, true);
    checkRepulsion({2, 4097, all ? 300 : 33, 20}, type, Kind::kDuplicates, true, false);
    checkRepulsion({1, 16384, all ? 64 : 9, all ? 100 : 10}, type, Kind::kNormal, false, true);
    checkTopK({1, 2, 1, 16600, all ? 128 : 8, 16384, 1638}, type, Kind::kNormal, 0, 16384);
    checkTopK({2, 4, 4, 3000, 64, 2880, 160}, type, Kind::kDuplicates, 50, 2880);
  }
  for (int64_t const rows : {40, 1000, 1500, 2500, 4000, 4500}) checkGram(rows, 30);
  check(sts::repulsionSelectWorkspace({1, 4, 2, 5}) == 0, "more steps than rows are refused");
  check(sts::lastTokenTopKWorkspace({1, 4, 3, 8, 2, 2, 1}) == 0, "heads that are no multiple are refused");
}

#if defined(__CUDACC__)
void timeRepulsion(sts::RepulsionSelectShape const& shape, DataType type, int repeats) {
  std::vector<char> const features = values(type, Kind::kNormal, shape.crops, shape.rows, shape.width, 3);
  std::vector<int64_t> const first(static_cast<size_t>(shape.crops), 0);
  Buffer const x(features.size(), features.data()), anchor(first.size() * 8, first.data());
  Buffer chosen(static_cast<size_t>(shape.crops * shape.steps) * 8), workspace(sts::repulsionSelectWorkspace(shape));
  auto const* const anchors = static_cast<int64_t const*>(at(anchor));
  // Up to 4096 rows: the matrix is written once and a row of it read per step; beyond, every step reads all features.
  size_t const pairs = static_cast<size_t>(shape.crops * shape.rows), steps = static_cast<size_t>(shape.steps);
  size_t const moved = shape.rows <= 4096 ? x.size() + pairs * (static_cast<size_t>(shape.rows) + steps) * 4 : steps * (x.size() + pairs * 8);
  std::string const name = "repulsion_" + std::to_string(shape.crops) + "x" + std::to_string(shape.rows) + "x" + std::to_string(shape.width) + "_k" +
                           std::to_string(shape.steps) + "_" + kTypeNames[static_cast<int>(type)];
  measure(
      name, [&](cudaStream_t stream) { return select(shape, type, x, anchors, nullptr, chosen, workspace, stream); }, repeats,
      x.size() + chosen.size(), moved);
}

void timeTopK(sts::LastTokenTopKShape const& shape, DataType type) {
  Request const made = request(shape, type, Kind::kNormal, 0, shape.visual);
  Buffer const query(made.query.size(), made.query.data()), key(made.key.size(), made.key.data());
  Buffer const mask(made.mask.size() * 8, made.mask.data()), visual(made.visual.size(), made.visual.data());
  Buffer kept(static_cast<size_t>(shape.batch * (shape.rows - shape.visual + shape.visualKeep)) * 8), last(static_cast<size_t>(shape.batch) * 8),
      workspace(sts::lastTokenTopKWorkspace(shape));
  size_t const asked = query.size() / static_cast<size_t>(shape.rows);  // only the last rows are read
  size_t const floor = asked + key.size() + mask.size() + visual.size() + kept.size() + last.size();
  std::string const name = "topk_" + std::to_string(shape.batch) + "x" + std::to_string(shape.heads) + "x" + std::to_string(shape.kvHeads) + "x" +
                           std::to_string(shape.rows) + "_k" + std::to_string(shape.visualKeep) + "_" + kTypeNames[static_cast<int>(type)];
  measure(
      name, [&](cudaStream_t stream) { return choose(shape, type, query, key, mask, visual, 0.088388f, kept, last, workspace, stream); }, 200, floor,
      floor + 3 * workspace.size());
}

void timeAll() {
  timeRepulsion({1, 576, 1024, 96}, DataType::kHalf, 200);
  timeRepulsion({1, 576, 1024, 192}, DataType::kHalf, 200);
  timeRepulsion({5, 576, 1024, 96}, DataType::kHalf, 200);
  timeRepulsion({1, 2880, 1024, 480}, DataType::kHalf, 100);
  timeRepulsion({1, 4096, 3584, 819}, DataType::kBfloat16, 30);
  timeRepulsion({1, 16384, 1024, 1000}, DataType::kHalf, 10);
  timeTopK({1, 32, 32, 131, 128, 96, 32}, DataType::kHalf);
  timeTopK({1, 32, 32, 700, 128, 576, 64}, DataType::kHalf);
  timeTopK({1, 28, 4, 700, 128, 576, 64}, DataType::kBfloat16);
  timeTopK({1, 32, 32, 515, 128, 480, 160}, DataType::kHalf);
  timeTopK({1, 28, 4, 16500, 128, 16384, 1638}, DataType::kBfloat16);
}
#endif

void print() {
  std::string device = "none";
#if defined(__CUDACC__)
  if (!options.hostOnly) {
    cudaDeviceProp properties;
    REQUIRE(cudaGetDeviceProperties(&properties, 0));
    device = std::string(properties.name) + ", sm_" + std::to_string(properties.major) + std::to_string(properties.minor);
  }
#endif
  std::printf("{\"device\": \"%s\", \"checks\": %d, \"failures\": [", device.c_str(), checks);
  for (size_t i = 0; i < failures.size(); ++i) std::printf("%s\"%s\"", i == 0 ? "" : ", ", failures[i].c_str());
  std::printf("], \"timings_us\": {");
  for (size_t i = 0; i < timings.size(); ++i) {
    Timing const& one = timings[i];
    std::printf("%s\"%s\": {\"median\": %.2f, \"min\": %.2f, \"floor_bytes\": %zu, \"moved_bytes\": %zu}", i == 0 ? "" : ", ", one.name.c_str(),
                one.median, one.least, one.floorBytes, one.movedBytes);
  }
  std::printf("}}\n");
}

}  // namespace

int main(int count, char** arguments) {
  for (int i = 1; i < count; ++i) {
    std::string const argument = arguments[i];
    if (argument == "--host-only") {
      options.hostOnly = true;
    } else if (argument == "--checks-only") {
      options.checksOnly = true;
    } else {
      std::fprintf(stderr, "usage: check_kernels [--checks-only] [--host-only]\n");
      return 2;
    }
  }
#if !defined(__CUDACC__)
  if (!options.hostOnly) {
    std::fprintf(stderr, "check_kernels: built without nvcc: --host-only is all it can do\n");
    return 2;
  }
#endif
  checkAll();
#if defined(__CUDACC__)
  if (!options.hostOnly && !options.checksOnly) timeAll();
#endif
  print();
  return failures.empty() ? 0 : 1;
}
