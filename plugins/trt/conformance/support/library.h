// The plugin library, loaded as IPluginRegistry::loadLibrary does it, and what TensorRT gives it.
#pragma once

#include <string>
#include <vector>

#include "tensorrt.h"

namespace sts::conformance {

struct Logger final : nvinfer1::ILogger {
  void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override;

  std::vector<std::string> errors;
};

struct LoggerFinder final : nvinfer1::ILoggerFinder {
  nvinfer1::ILogger* findLogger() override { return &logger; }

  Logger logger;
};

struct ResourceContext final : nvinfer1::IPluginResourceContext {
  nvinfer1::IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
  nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

class Library {
 public:
  // Throws std::runtime_error: no library, a symbol is missing, or it was compiled for another TensorRT than this program.
  explicit Library(char const* path);
  ~Library();
  Library(Library const&) = delete;
  Library& operator=(Library const&) = delete;

  nvinfer1::IPluginCreatorV3One* creator(std::string const& name) const;  // nullptr: none
  std::vector<nvinfer1::IPluginCreatorInterface*> const& creators() const { return mCreators; }
  bool hostEnqueue() const { return mHostEnqueue; }
  void setFinder(nvinfer1::ILoggerFinder* finder) const { mSetLoggerFinder(finder); }

 private:
  void* symbol(char const* name) const;

  void* mHandle;
  void (*mSetLoggerFinder)(nvinfer1::ILoggerFinder*) = nullptr;
  bool mHostEnqueue = false;
  std::vector<nvinfer1::IPluginCreatorInterface*> mCreators;
};

}  // namespace sts::conformance
