#include "sizes.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>

namespace sts {

void Reason::say(char const* format, ...) noexcept {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
}

Sizes::Sizes() noexcept { std::fill_n(values, kMaxSizes, kUnknown); }

bool Sizes::bind(Operator const& op, Port const& port, int64_t rank, int64_t const* dims, Reason& reason) noexcept {
  if (rank != port.rank) {
    reason.say("sts::%s: %s has %lld dimensions; it needs %d", op.name, port.name, static_cast<long long>(rank), port.rank);
    return false;
  }
  for (int32_t axis = 0; axis < port.rank; ++axis) {
    int64_t& size = values[port.sizes[axis]];
    if (dims[axis] == kUnknown) continue;
    if (size != kUnknown && size != dims[axis]) {
      reason.say("sts::%s: dimension %d of %s is %lld; the other tensors need %lld", op.name, axis, port.name, static_cast<long long>(dims[axis]),
                 static_cast<long long>(size));
      return false;
    }
    size = dims[axis];
  }
  return true;
}

void Sizes::deduce(Operator const& op) noexcept {
  if (op.deduction == nullptr || values[op.deduction->size] != kUnknown) return;
  int64_t const all = values[op.deduction->all], leftOut = values[op.deduction->leftOut], kept = values[op.deduction->kept];
  if (all != kUnknown && leftOut != kUnknown && kept != kUnknown) values[op.deduction->size] = all - leftOut + kept;
}

bool Sizes::known(Operator const& op) const noexcept {
  return std::all_of(op.ports, op.ports + op.inputs + op.outputs, [this](Port const& port) {
    return std::all_of(port.sizes, port.sizes + port.rank, [this](int32_t size) { return values[size] != kUnknown; });
  });
}

bool Sizes::check(Operator const& op, Reason& reason) const noexcept {
  Deduction const* const sum = op.deduction;
  bool const follows = sum == nullptr || values[sum->size] == values[sum->all] - values[sum->leftOut] + values[sum->kept];
  if (follows && op.bounded(values) && op.workspaceSize(values) != 0) return true;
  reason.say("sts::%s: the sizes of the tensors do not fit together or are out of range", op.name);
  return false;
}

}  // namespace sts
