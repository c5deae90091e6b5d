// The stages of a plugin's life.  Each checks one operator and adds to the report.
#pragma once

#include <memory>

#include "../support/library.h"
#include "../support/operators.h"
#include "../support/report.h"

namespace sts::conformance {

struct Subject {
  Library const& library;
  LoggerFinder& finder;
  Operator const& op;
  nvinfer1::IPluginCreatorV3One& creator;
  Report& report;
};

using PluginPointer = std::unique_ptr<nvinfer1::IPluginV3>;

// A plugin with this value of its field, as the ONNX parser makes it; never null (throws std::runtime_error).
PluginPointer createForBuild(Subject const& subject, float value);
// A plugin as an engine makes it: from bytes that the plugin serialized.
PluginPointer createForRuntime(Subject const& subject, nvinfer1::IPluginV3& built);

nvinfer1::IPluginV3OneCore& core(nvinfer1::IPluginV3& plugin);
nvinfer1::IPluginV3OneBuild& build(nvinfer1::IPluginV3& plugin);
nvinfer1::IPluginV3OneRuntime& runtime(nvinfer1::IPluginV3& plugin);
float serializedValue(nvinfer1::IPluginV3& plugin);

void checkCreator(Subject const& subject);
void checkFields(Subject const& subject);
void checkCapabilities(Subject const& subject);
void checkOutputTypes(Subject const& subject);
void checkOutputShapes(Subject const& subject);
void checkFormats(Subject const& subject);
void checkConfigure(Subject const& subject);
void checkWorkspace(Subject const& subject);
void checkSerialization(Subject const& subject);
void checkClones(Subject const& subject);
void checkShapeChange(Subject const& subject);
void checkEnqueue(Subject const& subject);

}  // namespace sts::conformance
