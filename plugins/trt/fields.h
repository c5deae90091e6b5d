// The plugins' fields: from ONNX attributes when a network is parsed, from the engine when it is deserialized.
#pragma once

#include "operator.h"
#include "tensorrt.h"

namespace sts::trt {

// Reads the field that is the operator's attribute into `value`.  False, with the reason logged: the field is missing, given twice, no float32 scalar, not finite or not
// above 0, or there is a field that the plugin does not know.
bool readField(Operator const& op, nvinfer1::PluginFieldCollection const* fields, float& value) noexcept;

}  // namespace sts::trt
