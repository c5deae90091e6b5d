#include "library.h"

#include "creator.h"
#include "log.h"

nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators) {
  static sts::trt::Creator repulsionSelect{sts::kRepulsionSelect};
  static sts::trt::Creator lastTokenTopK{sts::kLastTokenTopK};
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&repulsionSelect, &lastTokenTopK};
  nbCreators = 2;
  return creators;
}

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { sts::trt::setLogFinder(finder); }

int32_t stsPluginsTensorRTVersion() { return static_cast<int32_t>(NV_TENSORRT_VERSION); }

int32_t stsPluginsHostEnqueue() {
#ifdef STS_HOST_ENQUEUE
  return 1;
#else
  return 0;
#endif
}
