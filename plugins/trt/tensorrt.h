// TensorRT's plugin interfaces, 10.3 to 11.x.
#pragma once

#include <NvInferRuntime.h>
#include <NvInferVersion.h>

#if NV_TENSORRT_MAJOR < 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR < 3)
#error "These plugins need the headers of TensorRT 10.3 or later"
#endif
