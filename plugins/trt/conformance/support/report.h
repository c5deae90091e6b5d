// Counts of checks, by stage of a plugin's life and by operator.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace sts::conformance {

struct Counts {
  int passed = 0;
  int skipped = 0;
  int failed = 0;
};

class Report {
 public:
  void begin(std::string const& operatorName, std::string const& stage);
  // A failure is printed at once, with what was checked.
  bool check(bool ok, std::string const& what);
  void skip(int checks, std::string const& why);

  void print() const;
  bool failed() const;

 private:
  Counts& counts();

  std::string mOperator;
  std::string mStage;
  std::vector<std::string> mOperators;
  std::vector<std::string> mStages;
  std::map<std::pair<std::string, std::string>, Counts> mCounts;
  std::map<std::string, int> mSkipped;  // by reason
};

}  // namespace sts::conformance
