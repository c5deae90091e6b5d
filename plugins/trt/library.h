// What the shared library exports.  The first two are what IPluginRegistry::loadLibrary looks for.
#pragma once

#include "tensorrt.h"

#define STS_EXPORT extern "C" __attribute__((visibility("default")))

STS_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators);
STS_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

// The TensorRT of the headers that the library was compiled with: 10000 major + 100 minor + patch.  A library serves that major version only:
// TensorRT 11 moved the logger's virtual functions.
STS_EXPORT int32_t stsPluginsTensorRTVersion();

// 1 if enqueue reads and writes host memory: a library for the conformance harness (STS_HOST_ENQUEUE), never for TensorRT.
STS_EXPORT int32_t stsPluginsHostEnqueue();
