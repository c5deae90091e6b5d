// What check_kernels runs its calls with: guarded buffers, capture and replay, timing, comparison with the host.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "../types.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

namespace {

using sts::DataType;
using sts::Status;

struct Options {
  bool hostOnly = false, checksOnly = false, once = false;
} options;

struct Timing {
  std::string name;
  double median, least;
  size_t floorBytes, movedBytes;
};

int checks = 0;
std::vector<std::string> failures;
std::vector<Timing> timings;

void check(bool right, std::string const& what) {
  ++checks;
  if (!right) failures.push_back(what);
}

#if defined(__CUDACC__)
void require(cudaError_t error, char const* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "check_kernels: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}
#define REQUIRE(call) require(call, #call)
#endif

// ---- Memory of the side that is checked, between guards ----

constexpr size_t kGuard = 4096;
constexpr int kPattern = 0xa5;

class Buffer {
 public:
  explicit Buffer(size_t size, void const* data = nullptr) : mSize(size) {
#if defined(__CUDACC__)
    if (!options.hostOnly) {
      REQUIRE(cudaMalloc(reinterpret_cast<void**>(&mMemory), size + 2 * kGuard));
      fill();
      if (data != nullptr) REQUIRE(cudaMemcpy(get(), data, size, cudaMemcpyHostToDevice));
      return;
    }
#endif
    mMemory = static_cast<char*>(std::aligned_alloc(kGuard, (size + 3 * kGuard - 1) / kGuard * kGuard));
    if (mMemory == nullptr) std::exit(2);
    fill();
    if (data != nullptr) std::memcpy(get(), data, size);
  }

  Buffer(Buffer const&) = delete;
  Buffer& operator=(Buffer const&) = delete;

  ~Buffer() {
#if defined(__CUDACC__)
    if (!options.hostOnly) {
      cudaFree(mMemory);
      return;
    }
#endif
    std::free(mMemory);
  }

  void* get() const { return mMemory + kGuard; }
  size_t size() const { return mSize; }

  void fill() const {
#if defined(__CUDACC__)
    if (!options.hostOnly) {
      REQUIRE(cudaMemset(mMemory, kPattern, mSize + 2 * kGuard));
      return;
    }
#endif
    std::memset(mMemory, kPattern, mSize + 2 * kGuard);
  }

  // Everything with its guards.
  std::vector<unsigned char> read() const {
    std::vector<unsigned char> all(mSize + 2 * kGuard);
#if defined(__CUDACC__)
    if (!options.hostOnly) {
      REQUIRE(cudaMemcpy(all.data(), mMemory, all.size(), cudaMemcpyDeviceToHost));
      return all;
    }
#endif
    std::memcpy(all.data(), mMemory, all.size());
    return all;
  }

 private:
  char* mMemory = nullptr;
  size_t mSize;
};

bool guarded(std::vector<unsigned char> const& all) {
  auto const intact = [](unsigned char byte) { return byte == kPattern; };
  return std::all_of(all.begin(), all.begin() + kGuard, intact) && std::all_of(all.end() - kGuard, all.end(), intact);
}

// ---- Running a call: plainly, then captured and replayed twice ----

using Call = std::function<Status(cudaStream_t)>;

#if defined(__CUDACC__)
class Graph {
 public:
  explicit Graph(Call const& call) {
    REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    captured = call(stream) == Status::kOk;
    cudaGraph_t graph = nullptr;
    REQUIRE(cudaStreamEndCapture(stream, &graph));
    REQUIRE(cudaGraphInstantiateWithFlags(&mGraph, graph, 0));
    REQUIRE(cudaGraphDestroy(graph));
  }

  Graph(Graph const&) = delete;
  Graph& operator=(Graph const&) = delete;

  ~Graph() {
    cudaGraphExecDestroy(mGraph);
    cudaStreamDestroy(stream);
  }

  void replay() const { REQUIRE(cudaGraphLaunch(mGraph, stream)); }

  void wait() const { REQUIRE(cudaStreamSynchronize(stream)); }

  cudaStream_t stream = nullptr;
  bool captured = false;

 private:
  cudaGraphExec_t mGraph = nullptr;
};

void measure(std::string const& name, Call const& call, int repeats, size_t floorBytes, size_t movedBytes) {
  if (options.once) {
    check(call(nullptr) == Status::kOk, name + ": refused");
    REQUIRE(cudaDeviceSynchronize());
    return;
  }
  Graph const graph(call);
  cudaEvent_t start, stop;
  REQUIRE(cudaEventCreate(&start));
  REQUIRE(cudaEventCreate(&stop));
  std::vector<float> all;
  for (int repeat = -repeats / 5 - 3; repeat < repeats; ++repeat) {
    REQUIRE(cudaEventRecord(start, graph.stream));
    graph.replay();
    REQUIRE(cudaEventRecord(stop, graph.stream));
    REQUIRE(cudaEventSynchronize(stop));
    float milliseconds = 0;
    REQUIRE(cudaEventElapsedTime(&milliseconds, start, stop));
    if (repeat >= 0) all.push_back(milliseconds * 1e3f);
  }
  REQUIRE(cudaEventDestroy(start));
  REQUIRE(cudaEventDestroy(stop));
  std::sort(all.begin(), all.end());
  timings.push_back({name, all[all.size() / 2], all[0], floorBytes, movedBytes});
}
#endif

// Output and what it should hold.
struct Expected {
  Buffer const& buffer;
  std::vector<int64_t> const& values;
};

void compare(std::string const& name, Call const& call, Buffer& workspace, std::vector<Expected> const& outputs) {
  auto const look = [&](char const* how) {
    for (Expected const& output : outputs) {
      std::vector<unsigned char> const found = output.buffer.read();
      bool const equal = std::memcmp(found.data() + kGuard, output.values.data(), output.values.size() * sizeof(int64_t)) == 0;
      check(equal, name + ": " + how + ": other indices than on the host");
      check(guarded(found), name + ": " + how + ": written beyond an output");
      output.buffer.fill();
    }
    check(guarded(workspace.read()), name + ": " + how + ": written beyond the workspace");
    workspace.fill();
  };
#if defined(__CUDACC__)
  if (!options.hostOnly) {
    check(call(nullptr) == Status::kOk, name + ": refused");
    REQUIRE(cudaDeviceSynchronize());
    look("plain");
    Graph const graph(call);
    check(graph.captured, name + ": refused in capture");
    for (char const* how : {"first replay", "second replay"}) {
      REQUIRE(cudaDeviceSynchronize());
      graph.replay();
      graph.wait();
      look(how);
    }
    return;
  }
#endif
  for (char const* how : {"first", "second"}) {
    check(call(nullptr) == Status::kOk, name + ": refused");
    look(how);
  }
}

// Two calls that share a workspace, several times in turn without a wait between them.
template <class Case, class Way>
Status inTurn(Case const& one, Case const& other, Way const& way, Buffer& workspace, cudaStream_t stream) {
  for (int turn = 0; turn < 6; ++turn) {
    Status const status = (turn % 2 == 0 ? one : other).enqueue(way, workspace, stream);
    if (status != Status::kOk) return status;
  }
  return Status::kOk;
}

}  // namespace
