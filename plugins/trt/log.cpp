#include "log.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace sts::trt {
namespace {

// Set once when the library is loaded, read by any thread that runs a plugin.
std::atomic<nvinfer1::ILoggerFinder*> logFinder{nullptr};

nvinfer1::ILogger* findLogger() noexcept {
  nvinfer1::ILoggerFinder* const finder = logFinder.load();
  try {  // findLogger is not declared noexcept
    return finder == nullptr ? nullptr : finder->findLogger();
  } catch (...) {
    return nullptr;
  }
}

}  // namespace

void setLogFinder(nvinfer1::ILoggerFinder* finder) noexcept { logFinder.store(finder); }

void logError(char const* format, ...) noexcept {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  if (nvinfer1::ILogger* const logger = findLogger()) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, message);
  } else {
    std::fprintf(stderr, "%s\n", message);
  }
}

}  // namespace sts::trt
