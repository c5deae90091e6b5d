// A CUDA device for g++: plugins/kernels/*.cu compile against it unchanged and run on the host, thread by thread.
//
// The threads of a block are fibers that switch only where they wait for each other, in an order that is drawn anew at every turn: a result that needs
// a barrier which is not there comes out wrong sooner or later.  Barriers that not all threads reach end the program.  With STS_SIMULATE_BY_THREADS
// they are operating system threads instead, for ThreadSanitizer, which sees every unordered access.
//
// Kernels run one after the other even where one may start early; that each keeps the rules of a chain (launch.h) is checked.
#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <tuple>
#include <vector>

#if defined(STS_SIMULATE_BY_THREADS)
#include <condition_variable>
#include <mutex>
#include <thread>
#else
#include <setjmp.h>
#include <ucontext.h>
#endif

#include "types.h"

#define __global__
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after the other, each on what the one before has left

struct Index3 {
  uint32_t x;
};

namespace simulated {

[[noreturn]] inline void fail(char const* why) {
  std::fprintf(stderr, "simulated device: %s\n", why);
  std::abort();
}

inline Index3 block{0};
inline int threads = 0;
inline thread_local int rank = 0;

#if defined(STS_SIMULATE_BY_THREADS)

class Barrier {
 public:
  explicit Barrier(int expected) : mExpected(expected) {}

  void wait() {
    std::unique_lock<std::mutex> lock(mMutex);
    int const generation = mGeneration;
    if (++mArrived == mExpected) {
      mArrived = 0;
      ++mGeneration;
      mReleased.notify_all();
    } else {
      mReleased.wait(lock, [&] { return mGeneration != generation; });
    }
  }

 private:
  std::mutex mMutex;
  std::condition_variable mReleased;
  int mExpected, mArrived = 0, mGeneration = 0;
};

inline void runThreads(std::function<void()> const& body) {
  std::vector<std::thread> all;
  for (int r = 0; r < threads; ++r) {
    all.emplace_back([&body, r] {
      rank = r;
      body();
    });
  }
  for (std::thread& one : all) one.join();
}

#else

// A fiber's first entry is by ucontext; from then on by _setjmp and _longjmp, which make no system calls.
struct Fiber {
  ucontext_t context;
  jmp_buf resume;
  bool started = false;
  std::unique_ptr<char[]> stack;
  bool done = false;
  int const* watched = nullptr;  // a generation, and the one it waits to pass
  int passed = 0;
};

constexpr size_t kStack = 64 * 1024;
inline jmp_buf schedulerResume;
inline std::vector<Fiber> fibers;
inline std::function<void()> const* work = nullptr;
inline std::mt19937 order(1);

inline void enter(Fiber& fiber) {
  if (_setjmp(schedulerResume) != 0) return;
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

class Barrier {
 public:
  explicit Barrier(int expected) : mExpected(expected) {}

  void wait() {
    if (++mArrived == mExpected) {
      mArrived = 0;
      ++mGeneration;
      return;
    }
    Fiber& fiber = fibers[rank];
    fiber.watched = &mGeneration;
    fiber.passed = mGeneration;
    if (_setjmp(fiber.resume) == 0) _longjmp(schedulerResume, 1);
  }

 private:
  int mExpected, mArrived = 0, mGeneration = 0;
};

inline void fiberMain() {
  (*work)();
  fibers[rank].done = true;
  _longjmp(schedulerResume, 1);
}

inline void runThreads(std::function<void()> const& body) {
  work = &body;
  if (fibers.size() < static_cast<size_t>(threads)) fibers.resize(threads);
  std::vector<int> running;
  for (int r = 0; r < threads; ++r) {
    Fiber& fiber = fibers[r];
    if (fiber.stack == nullptr) fiber.stack = std::unique_ptr<char[]>(new char[kStack]);
    fiber.done = fiber.started = false;
    fiber.watched = nullptr;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiberMain, 0);
    running.push_back(r);
  }
  int delayed = -1, turns = 0;  // one warp may fall behind the others as far as barriers let it
  while (!running.empty()) {
    if (turns-- == 0) {
      delayed = order() % 2 != 0 ? static_cast<int>(order() % static_cast<uint32_t>(threads / 32)) : -1;
      turns = static_cast<int>(order() % 16);
    }
    // Forwards, backwards, or from a random place, alternately by warps and by lanes.
    bool const backwards = order() % 2 != 0;
    size_t const count = running.size(), from = order() % count, stride = count % 31 != 0 && order() % 2 != 0 ? 31 : 1;
    bool progress = false;
    for (size_t i = 0; i < count; ++i) {
      size_t const place = (from + (backwards ? count - 1 - i : i) * stride) % count;
      Fiber& fiber = fibers[running[place]];
      if (running[place] / 32 == delayed || (fiber.watched != nullptr && *fiber.watched == fiber.passed)) continue;
      fiber.watched = nullptr;
      progress = true;
      rank = running[place];
      enter(fiber);
    }
    if (!progress && delayed < 0) fail("a barrier that not all threads reach");
    if (!progress) delayed = -1;
    std::vector<int> rest;
    for (int r : running) {
      if (!fibers[r].done) rest.push_back(r);
    }
    running.swap(rest);
  }
}

#endif

struct Warp {
  Barrier barrier{32};
  uint64_t slot[2][32];
  int turn[32] = {};  // of the lane; alternating slots save the wait after reading
};

inline std::unique_ptr<Barrier> blockBarrier;
inline std::vector<std::unique_ptr<Warp>> warps;

// Every lane's value, in every lane.
template <class T>
std::array<T, 32> exchange(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "shuffles move up to 8 bytes");
  Warp& warp = *warps[rank / 32];
  uint64_t* const slot = warp.slot[warp.turn[rank % 32]++ % 2];
  std::memcpy(slot + rank % 32, &value, sizeof value);
  warp.barrier.wait();
  std::array<T, 32> all;
  for (int lane = 0; lane < 32; ++lane) std::memcpy(&all[lane], slot + lane, sizeof value);
  return all;
}

}  // namespace simulated

namespace simulated {

// Which threads of the running block may work: in a dependent launch, those that have waited for the kernel before.
inline std::vector<char> mayWork;
// Whether a kernel of this call was the last thing on the stream, so that the next one may be a dependent launch.
inline bool inChain = false;

inline void requireWait(char const* what) {
  if (mayWork[static_cast<size_t>(rank)] == 0) fail(what);
}

}  // namespace simulated

// What the sources use of CUDA.
inline Index3& blockIdx = simulated::block;

enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() {
  simulated::inChain = false;
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* address, int value, size_t size, cudaStream_t) {
  std::memset(address, value, size);
  simulated::inChain = false;
  return cudaSuccess;
}

namespace sts {

struct CudaBlock {
  static constexpr int kWarp = 32;

  CudaBlock() { simulated::requireWait("a kernel works before it has waited for the one before it"); }
  int size() const { return simulated::threads; }
  int rank() const { return simulated::rank; }
  void sync() { simulated::blockBarrier->wait(); }
  uint32_t warpMin(uint32_t value) {
    for (uint32_t const other : simulated::exchange(value)) value = other < value ? other : value;
    return value;
  }
  template <class T>
  T shuffleXor(T value, int distance) {
    return simulated::exchange(value)[simulated::rank % 32 ^ distance];
  }
  template <class T>
  T shuffleUp(T value, int distance) {
    int const lane = simulated::rank % 32;
    return simulated::exchange(value)[lane < distance ? lane : lane - distance];
  }
  template <class T>
  T shuffle(T value, int lane) {
    return simulated::exchange(value)[lane];
  }
  void atomicMin(unsigned long long* address, unsigned long long value) {
    unsigned long long old = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (value < old && !__atomic_compare_exchange_n(address, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }
  void atomicAdd(uint32_t* address, uint32_t value) { __atomic_fetch_add(address, value, __ATOMIC_RELAXED); }
};

inline void awaitPrevious() { simulated::mayWork[static_cast<size_t>(simulated::rank)] = 1; }
inline void allowNext() { simulated::requireWait("a kernel lets the next one start before it has waited for the one before it"); }

// Few, so that the tests' shapes take one tile as often as the other.
inline int64_t multiprocessors() { return 2; }

template <class... Parameters>
bool canDepend(void (*)(Parameters...)) {
  return true;
}

template <class... Parameters>
char const* refusal(void (*)(Parameters...)) {
  return nullptr;
}

template <class... Parameters, class... Arguments>
void launchNext(bool dependent, void (*kernel)(Parameters...), int64_t blocks, int64_t threads, cudaStream_t, Arguments... arguments) {
  if (threads < 1 || threads > 1024 || threads % 32 != 0) simulated::fail("a block has 1 to 1024 threads, whole warps");
  if (blocks < 1 || blocks > INT32_MAX) simulated::fail("a grid has 1 to 2^31 - 1 blocks");
  if (dependent && !simulated::inChain) simulated::fail("the first kernel of a chain is launched ordinarily");
  simulated::inChain = true;
  simulated::threads = static_cast<int>(threads);
  std::tuple<Parameters...> const parameters(arguments...);
  for (int64_t block = 0; block < blocks; ++block) {
    simulated::block.x = static_cast<uint32_t>(block);
    simulated::blockBarrier = std::make_unique<simulated::Barrier>(static_cast<int>(threads));
    simulated::warps.clear();
    for (int64_t warp = 0; warp < threads / 32; ++warp) simulated::warps.push_back(std::make_unique<simulated::Warp>());
    simulated::mayWork.assign(static_cast<size_t>(threads), dependent ? 0 : 1);
    simulated::runThreads([&] { std::apply(kernel, parameters); });
    for (char const waited : simulated::mayWork) {
      if (waited == 0) simulated::fail("a kernel ends before it has waited for the one before it");
    }
  }
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int64_t threads, cudaStream_t stream, Arguments... arguments) {
  launchNext(false, kernel, blocks, threads, stream, arguments...);
}

}  // namespace sts
