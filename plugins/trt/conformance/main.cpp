// sts_conformance LIBRARY: drives each plugin of libsts_plugins.so through the life that TensorRT gives it, without TensorRT, and prints what passed.
#include <cstdio>
#include <exception>

#include "phases/phases.h"

namespace sts::conformance {
namespace {

struct Stage {
  char const* name;
  void (*check)(Subject const& subject);
};

constexpr Stage kStages[] = {
    {"creator", checkCreator},
    {"fields", checkFields},
    {"capabilities", checkCapabilities},
    {"output types", checkOutputTypes},
    {"output shapes", checkOutputShapes},
    {"formats", checkFormats},
    {"configure", checkConfigure},
    {"workspace", checkWorkspace},
    {"serialization", checkSerialization},
    {"clones", checkClones},
    {"shape change", checkShapeChange},
    {"enqueue", checkEnqueue},
};

void checkOperator(Library const& library, Operator const& op, Report& report) {
  LoggerFinder finder;
  library.setFinder(&finder);
  report.begin(op.name, "creator");
  nvinfer1::IPluginCreatorV3One* const creator = library.creator(op.name);
  if (!report.check(creator != nullptr, "the library has a creator")) return;
  Subject const subject{library, finder, op, *creator, report};
  for (Stage const& stage : kStages) {
    report.begin(op.name, stage.name);
    try {
      stage.check(subject);
    } catch (std::exception const& error) {
      report.check(false, error.what());
    }
  }
  library.setFinder(nullptr);
}

int run(char const* path) {
  Library const library(path);
  std::printf("%s, TensorRT %d.%d.%d, enqueue on the %s\n", path, NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH,
              library.hostEnqueue() ? "HOST, with the host's kernels (not what TensorRT runs)" : "GPU");
  Report report;
  for (Operator const& op : operators()) checkOperator(library, op, report);
  report.begin("(library)", "creator");
  report.check(library.creators().size() == operators().size(), "the library has no other creators");
  report.print();
  return report.failed() ? 1 : 0;
}

}  // namespace
}  // namespace sts::conformance

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: sts_conformance libsts_plugins.so\n");
    return 2;
  }
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // what was found stays visible if a plugin crashes
  try {
    return sts::conformance::run(argv[1]);
  } catch (std::exception const& error) {
    std::fprintf(stderr, "sts_conformance: %s\n", error.what());
    return 2;
  }
}
