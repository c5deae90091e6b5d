// What the shared library exports.
#include <cstdio>
#include <mutex>
#include <optional>
#include <type_traits>

#include "custom_operator.h"
#include "last_token_topk.h"
#include "status.h"

#define STS_EXPORT extern "C" __attribute__((visibility("default")))

// What ONNX Runtime looks for when a session's options register a library.
STS_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, OrtApiBase const* base) noexcept;

// The version of ONNX Runtime's API that the library asks for: any runtime of this minor version or a later one will do.
STS_EXPORT int32_t stsOnnxRuntimeApiVersion() noexcept;

// The version of the operators' interface (operator.h).
STS_EXPORT int32_t stsOperatorsVersion() noexcept;

// Why the kernels do not run on the current device, in CUDA's words; nullptr if they do.
STS_EXPORT char const* stsDeviceRefusal() noexcept;

namespace sts::onnxruntime {
namespace {

// All that is registered with one runtime, and shared by its sessions.  It lasts as long as the library, and nothing is destroyed before: nobody says
// when the last session ends, and threads may still run one while the process exits.
struct Registration {
  Registration(OrtApiBase const& from, Runtime const& runtime) noexcept
      : base(&from),
        operators{{kRepulsionSelect, Provider::kCpu, runtime},
                  {kRepulsionSelect, Provider::kCuda, runtime},
                  {kLastTokenTopK, Provider::kCpu, runtime},
                  {kLastTokenTopK, Provider::kCuda, runtime}} {}

  OrtApiBase const* base;
  CustomOperator operators[4];
  OrtCustomOpDomain* domain = nullptr;
};

// Of several runtimes in one process, each with its own functions.
constexpr size_t kMostRuntimes = 8;
std::mutex registrationsMutex;
std::optional<Registration> registrations[kMostRuntimes];
static_assert(std::is_trivially_destructible_v<decltype(registrations)>);

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
  return status;
}

OrtStatusPtr find(OrtApiBase const& base, Runtime const& runtime, OrtCustomOpDomain*& domain) noexcept {
  std::lock_guard<std::mutex> const lock(registrationsMutex);
  for (std::optional<Registration>& registration : registrations) {
    if (!registration.has_value()) {
      OrtStatusPtr const status = fill(*runtime.api, registration.emplace(base, runtime));
      if (status != nullptr) {
        if (registration->domain != nullptr) runtime.api->ReleaseCustomOpDomain(registration->domain);
        registration.reset();
        return status;
      }
    }
    if (registration->base == &base) {
      domain = registration->domain;
      return nullptr;
    }
  }
  return runtime.api->CreateStatus(ORT_FAIL, "sts: too many ONNX Runtimes in one process");
}

OrtStatusPtr refuseRuntime(OrtApiBase const& base) noexcept {
  OrtApi const* const oldest = base.GetApi(1);
  if (oldest == nullptr) return nullptr;  // there is no way to say anything
  Reason reason;
  reason.say("sts: this ONNX Runtime is %s; the operators need 1.%u or later", base.GetVersionString(), kApiVersion);
  return oldest->CreateStatus(ORT_NOT_IMPLEMENTED, reason.text);
}

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

char const* stsDeviceRefusal() noexcept { return sts::deviceRefusal(); }
