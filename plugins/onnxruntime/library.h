// What the shared library exports.
#pragma once

#include "onnxruntime.h"

#define STS_EXPORT extern "C" __attribute__((visibility("default")))

// What ONNX Runtime looks for when a session's options register a library.
STS_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, OrtApiBase const* base) noexcept;

// The version of ONNX Runtime's API that the library asks for: any runtime of this minor version or a later one will do.
STS_EXPORT int32_t stsOnnxRuntimeApiVersion() noexcept;

// The version of the operators' interface (operator.h).
STS_EXPORT int32_t stsOperatorsVersion() noexcept;
