#include "report.h"

#include <algorithm>
#include <cstdio>

namespace sts::conformance {
namespace {

void addOnce(std::vector<std::string>& names, std::string const& name) {
  if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
}

std::string text(Counts const& counts) {
  if (counts.passed + counts.skipped + counts.failed == 0) return "";
  std::string result = std::to_string(counts.passed) + " passed";
  if (counts.skipped > 0) result += ", " + std::to_string(counts.skipped) + " skipped";
  if (counts.failed > 0) result += ", " + std::to_string(counts.failed) + " FAILED";
  return result;
}

}  // namespace

void Report::begin(std::string const& operatorName, std::string const& stage) {
  mOperator = operatorName;
  mStage = stage;
  addOnce(mOperators, operatorName);
  addOnce(mStages, stage);
}

Counts& Report::counts() { return mCounts[{mOperator, mStage}]; }

bool Report::check(bool ok, std::string const& what) {
  ++(ok ? counts().passed : counts().failed);
  if (!ok) std::printf("FAILED  %s, %s: %s\n", mOperator.c_str(), mStage.c_str(), what.c_str());
  return ok;
}

void Report::skip(int checks, std::string const& why) {
  counts().skipped += checks;
  mSkipped[why] += checks;
}

void Report::print() const {
  Counts total;
  std::printf("%-16s", "");
  for (std::string const& name : mOperators) std::printf("  %-26s", name.c_str());
  std::printf("\n");
  for (std::string const& stage : mStages) {
    std::printf("%-16s", stage.c_str());
    for (std::string const& name : mOperators) {
      auto const found = mCounts.find({name, stage});
      Counts const counts = found == mCounts.end() ? Counts{} : found->second;
      total.passed += counts.passed;
      total.skipped += counts.skipped;
      total.failed += counts.failed;
      std::printf("  %-26s", text(counts).c_str());
    }
    std::printf("\n");
  }
  for (auto const& [why, checks] : mSkipped) std::printf("skipped %d: %s\n", checks, why.c_str());
  std::printf("%d passed, %d skipped, %d failed\n", total.passed, total.skipped, total.failed);
}

bool Report::failed() const {
  return std::any_of(mCounts.begin(), mCounts.end(), [](auto const& entry) { return entry.second.failed > 0; });
}

}  // namespace sts::conformance
