// Errors of ONNX Runtime's C API.
#pragma once

#include "onnxruntime.h"
#include "sizes.h"

namespace sts::onnxruntime {

// Owns what a call returned: nullptr for success, or an error.
class Result {
 public:
  Result(OrtApi const& api, OrtStatusPtr status) noexcept : mApi(api), mStatus(status) {}
  Result(Result const&) = delete;
  Result& operator=(Result const&) = delete;
  ~Result() {
    if (mStatus != nullptr) mApi.ReleaseStatus(mStatus);
  }

  bool ok() const noexcept { return mStatus == nullptr; }
  char const* message() const noexcept { return mStatus == nullptr ? "" : mApi.GetErrorMessage(mStatus); }

 private:
  OrtApi const& mApi;
  OrtStatusPtr mStatus;
};

// False, with the API's message as the reason, if a call of the API failed.
inline bool succeeded(OrtApi const& api, OrtStatusPtr status, Operator const& op, Reason& reason) noexcept {
  Result const result(api, status);
  if (!result.ok()) reason.say("sts::%s: %s", op.name, result.message());
  return result.ok();
}

inline OrtStatusPtr refusal(OrtApi const& api, Reason const& reason) noexcept { return api.CreateStatus(ORT_INVALID_ARGUMENT, reason.text); }

}  // namespace sts::onnxruntime
