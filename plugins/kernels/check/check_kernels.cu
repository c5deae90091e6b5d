// Checks the device's kernels against the host's, to the index, and times them.  Prints one JSON object; exits with 1 if anything differs.
//
//   check_kernels [--checks-only | --once] [--host-only]
//
// --checks-only: no timing, smaller shapes; for compute-sanitizer.  --once: calls what is timed once, and checks nothing; for profilers.
// --host-only: the host's kernels on both sides, which checks this program; all that a build by g++ (-x c++) can do.  CMake builds it from the
// objects of the shipped libraries.
#include "repulsion_case.h"
#include "topk_case.h"

#if defined(__CUDACC__)
#include "../launch.h"
#endif

namespace {

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
  checkRepulsionsInTurn({2, 300, 40, 60});
  checkRepulsionsInTurn({1, 4200, 16, 20});
  checkTopKsInTurn({2, 8, 2, 400, 64, 300, 40});
  for (int64_t const rows : {40, 1000, 1500, 2500, 4000, 4500}) checkGram(rows, 30);
  check(sts::repulsionSelectWorkspace({1, 4, 2, 5}) == 0, "more steps than rows are refused");
  check(sts::lastTokenTopKWorkspace({1, 4, 3, 8, 2, 2, 1}) == 0, "heads that are no multiple are refused");
}

#if defined(__CUDACC__)
std::vector<Way> withDefault(std::vector<std::vector<Way>> const& others) {
  std::vector<Way> all{{"", {}}};
  for (std::vector<Way> const& more : others) all.insert(all.end(), more.begin(), more.end());
  return all;
}

// Names of what else than the default is timed, for comparison.
std::vector<Way> const kTiles{{"_tile24", {24, true}}, {"_tile32", {32, true}}}, kOrdinary{{"_ordinary", {0, false}}};

void timeRepulsion(sts::RepulsionSelectShape const& shape, DataType type, int repeats, std::vector<std::vector<Way>> const& others = {}) {
  RepulsionCase const one(shape, type, Kind::kNormal, false, true, 3);
  Buffer workspace(one.workspaceSize());
  std::string const name = "repulsion_" + std::to_string(shape.crops) + "x" + std::to_string(shape.rows) + "x" + std::to_string(shape.width) + "_k" +
                           std::to_string(shape.steps) + "_" + nameOf(type);
  for (Way const& way : withDefault(others)) {
    Call const call = [&](cudaStream_t stream) { return one.enqueue(way, workspace, stream); };
    measure(name + way.name, call, repeats, one.floorBytes(), one.movedBytes());
  }
}

void timeTopK(sts::LastTokenTopKShape const& shape, DataType type) {
  TopKCase const one(shape, type, Kind::kNormal, 0, shape.visual, 0);
  Buffer workspace(one.workspaceSize());
  std::string const name = "topk_" + std::to_string(shape.batch) + "x" + std::to_string(shape.heads) + "x" + std::to_string(shape.kvHeads) + "x" +
                           std::to_string(shape.rows) + "_k" + std::to_string(shape.visualKeep) + "_" + nameOf(type);
  for (Way const& way : withDefault({kOrdinary})) {
    Call const call = [&](cudaStream_t stream) { return one.enqueue(way, workspace, stream); };
    measure(name + way.name, call, 200, one.floorBytes(), one.floorBytes() + 3 * workspace.size());
  }
}

void timeAll() {
  timeRepulsion({1, 576, 1024, 96}, DataType::kHalf, 200, {kTiles, kOrdinary});
  timeRepulsion({1, 576, 1024, 192}, DataType::kHalf, 200);
  timeRepulsion({5, 576, 1024, 96}, DataType::kHalf, 200, {kTiles, kOrdinary});
  timeRepulsion({1, 2880, 1024, 480}, DataType::kHalf, 100, {kTiles, kOrdinary});
  timeRepulsion({1, 4096, 3584, 819}, DataType::kBfloat16, 30);
  timeRepulsion({1, 16384, 1024, 1000}, DataType::kHalf, 10, {kOrdinary});
  timeTopK({1, 32, 32, 131, 128, 96, 32}, DataType::kHalf);
  timeTopK({1, 32, 32, 700, 128, 576, 64}, DataType::kHalf);
  timeTopK({1, 28, 4, 700, 128, 576, 64}, DataType::kBfloat16);
  timeTopK({1, 32, 32, 515, 128, 480, 160}, DataType::kHalf);
  timeTopK({1, 28, 4, 16500, 128, 16384, 1638}, DataType::kBfloat16);
}
#endif

#if defined(__CUDACC__)
__global__ void asShipped() {}
#endif

void print() {
  std::string device = "none";
  bool dependent = false;
#if defined(__CUDACC__)
  if (!options.hostOnly) {
    cudaDeviceProp properties;
    REQUIRE(cudaGetDeviceProperties(&properties, 0));
    device = std::string(properties.name) + ", sm_" + std::to_string(properties.major) + std::to_string(properties.minor) + ", " +
             std::to_string(properties.multiProcessorCount) + " multiprocessors";
    dependent = sts::canDepend(asShipped);
  }
#endif
  std::printf("{\"device\": \"%s\", \"dependent_launches\": %s, \"checks\": %d, \"failures\": [", device.c_str(), dependent ? "true" : "false",
              checks);
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
    } else if (argument == "--once") {
      options.once = true;
    } else {
      std::fprintf(stderr, "usage: check_kernels [--checks-only | --once] [--host-only]\n");
      return 2;
    }
  }
#if !defined(__CUDACC__)
  if (!options.hostOnly) {
    std::fprintf(stderr, "check_kernels: built without nvcc: --host-only is all it can do\n");
    return 2;
  }
#endif
  if (!options.once) checkAll();
#if defined(__CUDACC__)
  if (!options.hostOnly && !options.checksOnly) timeAll();
#endif
  print();
  return failures.empty() ? 0 : 1;
}
