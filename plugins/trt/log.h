// Messages to the logger of the engine, builder or context that called the plugin.
#pragma once

#include "tensorrt.h"

namespace sts::trt {

// finder: TensorRT's, which outlives the library's use; nullptr: messages go to the standard error output.
void setLogFinder(nvinfer1::ILoggerFinder* finder) noexcept;

// An error of at most 511 characters, in printf's notation.
__attribute__((format(printf, 1, 2))) void logError(char const* format, ...) noexcept;

}  // namespace sts::trt
