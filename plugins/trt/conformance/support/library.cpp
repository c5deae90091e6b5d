#include "library.h"

#include <dlfcn.h>

#include <cstring>
#include <stdexcept>

namespace sts::conformance {

void Logger::log(Severity severity, nvinfer1::AsciiChar const* message) noexcept {
  if (severity <= Severity::kERROR) errors.emplace_back(message);
}

Library::Library(char const* path) : mHandle(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
  if (mHandle == nullptr) throw std::runtime_error(dlerror());
  auto const version = reinterpret_cast<int32_t (*)()>(symbol("stsPluginsTensorRTVersion"));
  if (version() != static_cast<int32_t>(NV_TENSORRT_VERSION)) {
    throw std::runtime_error("the library was compiled for TensorRT " + std::to_string(version()) + ", this program for " +
                             std::to_string(NV_TENSORRT_VERSION) + "; build both in one folder");
  }
  mHostEnqueue = reinterpret_cast<int32_t (*)()>(symbol("stsPluginsHostEnqueue"))() != 0;
  mSetLoggerFinder = reinterpret_cast<void (*)(nvinfer1::ILoggerFinder*)>(symbol("setLoggerFinder"));
  auto const getCreators = reinterpret_cast<nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&)>(symbol("getCreators"));
  int32_t count = -1;
  nvinfer1::IPluginCreatorInterface* const* const creators = getCreators(count);
  if (count > 0) mCreators.assign(creators, creators + count);
}

Library::~Library() { dlclose(mHandle); }

void* Library::symbol(char const* name) const {
  void* const found = dlsym(mHandle, name);
  if (found == nullptr) throw std::runtime_error(dlerror());
  return found;
}

nvinfer1::IPluginCreatorV3One* Library::creator(std::string const& name) const {
  for (nvinfer1::IPluginCreatorInterface* const interface : mCreators) {
    if (std::strcmp(interface->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") != 0) continue;
    auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(interface);
    if (name == creator->getPluginName()) return creator;
  }
  return nullptr;
}

}  // namespace sts::conformance
