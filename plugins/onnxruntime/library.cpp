// What the shared library exports.
#include <cstdio>
#include <mutex>
#include <new>

#include "custom_operator.h"
#include "status.h"

#define STS_EXPORT extern "C" __attribute__((visibility("default")))

// What ONNX Runtime looks for when a session's options register a library.
STS_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, OrtApiBase const* base) noexcept;

// The version of ONNX Runtime's API that the library asks for: any runtime of this minor version or a later one will do.
STS_EXPORT int32_t stsOnnxRuntimeApiVersion() noexcept;

// The version of the operators' interface (operator.h).
STS_EXPORT int32_t stsOperatorsVersion() noexcept;

namespace sts::onnxruntime {
namespace {

// All that is registered with one runtime.  Sessions of that runtime share it, and it lasts as long as the library: nobody says when the last session
// that uses it ends.
struct Registration {
  Registration(OrtApiBase const* from, Runtime const& of) noexcept : base(from), runtime(of) {}

  OrtApiBase const* base;
  Runtime runtime;
  CustomOperator operators[4]{
      {kRepulsionSelect, Provider::kCpu, runtime},
      {kRepulsionSelect, Provider::kCuda, runtime},
      {kLastTokenTopK, Provider::kCpu, runtime},
      {kLastTokenTopK, Provider::kCuda, runtime},
  };
  OrtCustomOpDomain* domain = nullptr;
  Registration* next = nullptr;
};

std::mutex registrationsMutex;
Registration* registrations = nullptr;  // of several runtimes in one process, each with its own functions

// "1.31.1" -> 31: asking an older runtime for a newer API writes a complaint to the standard error output.
uint32_t minorVersion(OrtApiBase const& base) noexcept {
  unsigned major = 0, minor = 0;
  return std::sscanf(base.GetVersionString(), "%u.%u", &major, &minor) == 2 && major == 1 ? minor : 0;
}

Runtime runtimeOf(OrtApiBase const& base) noexcept {
  bool const stream = ORT_API_VERSION >= kStreamApiVersion && minorVersion(base) >= kStreamApiVersion;
  return {base.GetApi(kApiVersion), stream ? base.GetApi(kStreamApiVersion) : nullptr};
}

OrtStatusPtr fill(OrtApi const& api, Registration& registration) noexcept {
  OrtStatusPtr status = api.CreateCustomOpDomain(kNamespace, &registration.domain);
  for (CustomOperator& custom : registration.operators) {
    if (status == nullptr) status = api.CustomOpDomain_Add(registration.domain, &custom);
  }
  if (status != nullptr && registration.domain != nullptr) api.ReleaseCustomOpDomain(registration.domain);
  return status;
}

OrtStatusPtr find(OrtApiBase const& base, Runtime const& runtime, OrtCustomOpDomain*& domain) noexcept {
  std::lock_guard<std::mutex> const lock(registrationsMutex);
  for (Registration* known = registrations; known != nullptr; known = known->next) {
    if (known->base == &base) {
      domain = known->domain;
      return nullptr;
    }
  }
  Registration* const made = new (std::nothrow) Registration(&base, runtime);
  if (made == nullptr) return runtime.api->CreateStatus(ORT_FAIL, "sts: out of memory");
  OrtStatusPtr const status = fill(*runtime.api, *made);
  if (status != nullptr) {
    delete made;
    return status;
  }
  made->next = registrations;
  registrations = made;
  domain = made->domain;
  return nullptr;
}

OrtStatusPtr refuseRuntime(OrtApiBase const& base) noexcept {
  OrtApi const* const oldest = base.GetApi(1);
  if (oldest == nullptr) return nullptr;  // there is no way to say anything
  Reason reason;
  reason.say("sts: this ONNX Runtime is %s; the operators need 1.%u or later", base.GetVersionString(), kApiVersion);
  return oldest->CreateStatus(ORT_NOT_IMPLEMENTED, reason.text);
}

// When the library is unloaded no session uses it.
struct Cleanup {
  ~Cleanup() {
    while (registrations != nullptr) {
      Registration* const last = registrations;
      registrations = last->next;
      last->runtime.api->ReleaseCustomOpDomain(last->domain);
      delete last;
    }
  }
} cleanup;

}  // namespace
}  // namespace sts::onnxruntime

OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, OrtApiBase const* base) noexcept {
  using namespace sts::onnxruntime;
  Runtime const runtime = runtimeOf(*base);
  if (runtime.api == nullptr) return refuseRuntime(*base);
  OrtCustomOpDomain* domain = nullptr;
  OrtStatusPtr const status = find(*base, runtime, domain);
  return status != nullptr ? status : runtime.api->AddCustomOpDomain(options, domain);
}

int32_t stsOnnxRuntimeApiVersion() noexcept { return static_cast<int32_t>(sts::onnxruntime::kApiVersion); }

int32_t stsOperatorsVersion() noexcept { return sts::kOperatorsVersion; }
