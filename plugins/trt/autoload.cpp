// libsts_plugins_autoload.so: registers libsts_plugins.so, which lies beside it, with the TensorRT of this process as soon as it is loaded.
//
// For programs that only dlopen plugin libraries: Triton's TensorRT backend and trtexec --staticPlugins.  libsts_plugins.so cannot do it itself,
// because IPluginRegistry::loadLibrary fails where a plugin is already registered.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "tensorrt.h"

namespace {

constexpr char const* kLibrary = "libsts_plugins.so";

using GetPluginRegistry = nvinfer1::IPluginRegistry* (*)() noexcept;

#define STS_STRING(x) #x
#define STS_EXPANDED_STRING(x) STS_STRING(x)

// TensorRT may have been loaded by a library that keeps its symbols to itself, as Triton's backends do; then it is found by its file name.
GetPluginRegistry findRegistry() noexcept {
  void* symbol = dlsym(RTLD_DEFAULT, "getPluginRegistry");
  if (symbol == nullptr) {
    void* const tensorrt = dlopen("libnvinfer.so." STS_EXPANDED_STRING(NV_TENSORRT_MAJOR), RTLD_LAZY | RTLD_NOLOAD);
    if (tensorrt != nullptr) symbol = dlsym(tensorrt, "getPluginRegistry");
  }
  return reinterpret_cast<GetPluginRegistry>(symbol);
}

__attribute__((constructor)) void registerPlugins() noexcept {
  GetPluginRegistry const getPluginRegistry = findRegistry();
  if (getPluginRegistry == nullptr || getPluginRegistry() == nullptr) {
    std::fprintf(stderr, "sts: %s was not registered: TensorRT %d is not loaded in this process\n", kLibrary, NV_TENSORRT_MAJOR);
    return;
  }
  Dl_info self{};
  char path[4096];
  if (dladdr(reinterpret_cast<void const*>(&findRegistry), &self) == 0 || self.dli_fname == nullptr) return;
  char const* const slash = std::strrchr(self.dli_fname, '/');
  int const folder = slash == nullptr ? 0 : static_cast<int>(slash - self.dli_fname) + 1;
  int const length = std::snprintf(path, sizeof(path), "%.*s%s", folder, self.dli_fname, kLibrary);
  if (length < 0 || static_cast<size_t>(length) >= sizeof(path) || getPluginRegistry()->loadLibrary(path) == nullptr) {
    std::fprintf(stderr, "sts: %s was not registered: TensorRT could not load it, or it is registered already\n", path);
  }
}

}  // namespace
