// What the threads of a group compute together.  Every thread of the group calls these, with the same scratch memory.
#pragma once

#include "group.h"

namespace sts {

constexpr int kMaxWarps = 32;

// The least value and the lowest index that has it.
struct Least {
  uint32_t bits, index;

  STS_DEVICE void take(uint32_t otherBits, uint32_t otherIndex) {
    bool const less = otherBits < bits || (otherBits == bits && otherIndex < index);
    bits = less ? otherBits : bits;
    index = less ? otherIndex : index;
  }
};

constexpr uint32_t kNone = ~uint32_t{0};

struct LeastScratch {
  uint32_t bits[kMaxWarps], index[kMaxWarps];
};

// One barrier.  Consecutive calls must alternate between two scratches: a thread may be at its next call while another still reads.
template <class Group>
STS_DEVICE Least groupLeast(Group& group, Least mine, LeastScratch& scratch) {
  int const lane = group.rank() % Group::kWarp, warps = group.size() / Group::kWarp;
  uint32_t bits = group.warpMin(mine.bits);
  uint32_t index = group.warpMin(mine.bits == bits ? mine.index : kNone);
  if (warps == 1) return {bits, index};
  if (lane == 0) {
    scratch.bits[group.rank() / Group::kWarp] = bits;
    scratch.index[group.rank() / Group::kWarp] = index;
  }
  group.sync();
  uint32_t const warpBits = lane < warps ? scratch.bits[lane] : kNone;
  uint32_t const warpIndex = lane < warps ? scratch.index[lane] : kNone;
  bits = group.warpMin(warpBits);
  return {bits, group.warpMin(warpBits == bits ? warpIndex : kNone)};
}

template <int a, int b>
constexpr int kSmaller = a < b ? a : b;

// The sum of kLanes partial sums as a binary tree, the same on one thread as on many: on a warp every lane brings one, on one thread it brings all.
// Neighbouring groups of kLanes lanes sum separately.
template <class Group, int kLanes>
STS_DEVICE float laneSum(Group& group, float (&partial)[kLanes / kSmaller<kLanes, Group::kWarp>]) {
  STS_UNROLL
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    if constexpr (Group::kWarp == 1) {
      for (int lane = 0; lane < offset; ++lane) partial[lane] += partial[lane + offset];
    } else {
      partial[0] += group.shuffleXor(partial[0], offset);
    }
  }
  return partial[0];
}

struct Scan {
  unsigned long long before, total;
};

struct ScanScratch {
  unsigned long long total[kMaxWarps];
};

// Sums of the values of lower ranks, and of all.  A scratch serves one call.
template <class Group>
STS_DEVICE Scan groupScan(Group& group, unsigned long long value, ScanScratch& scratch) {
  int const lane = group.rank() % Group::kWarp, warp = group.rank() / Group::kWarp, warps = group.size() / Group::kWarp;
  unsigned long long sum = value;
  STS_UNROLL
  for (int distance = 1; distance < Group::kWarp; distance *= 2) {
    unsigned long long const other = group.shuffleUp(sum, distance);
    if (lane >= distance) sum += other;
  }
  if (lane == Group::kWarp - 1) scratch.total[warp] = sum;
  group.sync();
  unsigned long long before = 0, total = 0;
  for (int other = 0; other < warps; ++other) {
    if (other < warp) before += scratch.total[other];
    total += scratch.total[other];
  }
  return {before + sum - value, total};
}

}  // namespace sts
