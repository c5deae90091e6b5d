// The plugins' fields: from ONNX attributes when a network is parsed, from the engine when it is deserialized.
#pragma once

#include "interface.h"

namespace sts::trt {

// Reads the interface's field into `value`.  False, with the reason logged: the field is missing, given twice, no float32 scalar, not finite or not
// above 0, or there is a field that the plugin does not know.
bool readField(Interface const& interface, nvinfer1::PluginFieldCollection const* fields, float& value) noexcept;

}  // namespace sts::trt
