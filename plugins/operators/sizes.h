// An operator's sizes, from the dimensions of its tensors.
#pragma once

#include "operator.h"

namespace sts {

constexpr int64_t kUnknown = -1;

// Why something was refused: one line.
struct Reason {
  char text[256] = "";
  __attribute__((format(printf, 2, 3))) void say(char const* format, ...) noexcept;
};

// What is known of the operator's sizes, by the numbers of its ports.
struct Sizes {
  int64_t values[kMaxSizes];

  Sizes() noexcept;

  // Takes in the dimensions of one tensor; those that are kUnknown say nothing.  False, with the reason: a wrong rank, or a dimension that differs from
  // that of a tensor before.
  bool bind(Operator const& op, Port const& port, int64_t rank, int64_t const* dims, Reason& reason) noexcept;

  // Adds the size that no input has, if those that it follows from are known and it is not.
  void deduce(Operator const& op) noexcept;

  // Whether every size of the operator is known.
  bool known(Operator const& op) const noexcept;

  // Whether the sizes, all known, fit together and are in range.  False with the reason.
  bool check(Operator const& op, Reason& reason) const noexcept;
};

}  // namespace sts
