// The creator, its fields, and the plugins that it makes.
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "phases.h"

namespace sts::conformance {
namespace {

using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorRTPhase;

PluginPointer create(Subject const& subject, std::vector<PluginField> const& fields, TensorRTPhase phase) {
  nvinfer1::PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
  return PluginPointer(subject.creator.createPlugin("layer", &collection, phase));
}

template <typename Interface>
Interface& capability(nvinfer1::IPluginV3& plugin, PluginCapabilityType type) {
  nvinfer1::IPluginCapability* const found = plugin.getCapabilityInterface(type);
  if (found == nullptr) throw std::runtime_error("a capability interface is missing");
  return *static_cast<Interface*>(found);
}

// What `call` writes to the standard error output.
template <typename Call>
std::string standardError(Call const& call) {
  std::FILE* const file = std::tmpfile();
  if (file == nullptr) throw std::runtime_error("no temporary file could be made");
  std::fflush(stderr);
  int const saved = dup(STDERR_FILENO);
  dup2(fileno(file), STDERR_FILENO);
  call();
  std::fflush(stderr);
  dup2(saved, STDERR_FILENO);
  close(saved);
  std::rewind(file);
  char text[1024];
  std::string const result(text, std::fread(text, 1, sizeof(text), file));
  std::fclose(file);
  return result;
}

}  // namespace

PluginPointer createForBuild(Subject const& subject, float value) {
  PluginPointer plugin = create(subject, {{subject.op.field.c_str(), &value, PluginFieldType::kFLOAT32, 1}}, TensorRTPhase::kBUILD);
  if (plugin == nullptr) throw std::runtime_error("the plugin could not be created");
  return plugin;
}

PluginPointer createForRuntime(Subject const& subject, nvinfer1::IPluginV3& built) {
  nvinfer1::PluginFieldCollection const* const fields = runtime(built).getFieldsToSerialize();
  if (fields == nullptr || fields->nbFields != 1) throw std::runtime_error("there is not one field to serialize");
  // An engine is a string of bytes: names and data are copied, and the data need not be aligned.
  std::string const name = fields->fields[0].name;
  char data[sizeof(float) + 1];
  std::memcpy(data + 1, fields->fields[0].data, sizeof(float));
  PluginPointer plugin = create(subject, {{name.c_str(), data + 1, fields->fields[0].type, fields->fields[0].length}}, TensorRTPhase::kRUNTIME);
  if (plugin == nullptr) throw std::runtime_error("the plugin could not be created from its serialized fields");
  return plugin;
}

nvinfer1::IPluginV3OneCore& core(nvinfer1::IPluginV3& plugin) { return capability<nvinfer1::IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE); }

nvinfer1::IPluginV3OneBuild& build(nvinfer1::IPluginV3& plugin) {
  return capability<nvinfer1::IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}

nvinfer1::IPluginV3OneRuntime& runtime(nvinfer1::IPluginV3& plugin) {
  return capability<nvinfer1::IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

float serializedValue(nvinfer1::IPluginV3& plugin) {
  nvinfer1::PluginFieldCollection const* const fields = runtime(plugin).getFieldsToSerialize();
  float value = std::numeric_limits<float>::quiet_NaN();
  if (fields != nullptr && fields->nbFields == 1 && fields->fields[0].data != nullptr) std::memcpy(&value, fields->fields[0].data, sizeof(value));
  return value;
}

void checkCreator(Subject const& subject) {
  Report& report = subject.report;
  nvinfer1::IPluginCreatorV3One& creator = subject.creator;
  report.check(std::strcmp(creator.getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0, "is an IPluginCreatorV3One");
  report.check(creator.getPluginName() == subject.op.name, "name");
  report.check(std::strcmp(creator.getPluginVersion(), "1") == 0, "version is 1");
  report.check(std::strcmp(creator.getPluginNamespace(), "sts") == 0, "namespace is sts");
  nvinfer1::PluginFieldCollection const* const fields = creator.getFieldNames();
  if (report.check(fields != nullptr && fields->nbFields == 1, "one field")) {
    report.check(fields->fields[0].name == subject.op.field, "name of the field");
    report.check(fields->fields[0].type == PluginFieldType::kFLOAT32 && fields->fields[0].length == 1, "the field is a float32");
  }
}

void checkFields(Subject const& subject) {
  Report& report = subject.report;
  char const* const name = subject.op.field.c_str();
  float const good = 0.125F;
  auto const field = [&](float const& value) { return PluginField(name, &value, PluginFieldType::kFLOAT32, 1); };

  for (float const value : {good, 1e-6F, std::numeric_limits<float>::min(), std::numeric_limits<float>::max()}) {
    for (TensorRTPhase const phase : {TensorRTPhase::kBUILD, TensorRTPhase::kRUNTIME}) {
      PluginPointer const plugin = create(subject, {field(value)}, phase);
      report.check(plugin != nullptr && serializedValue(*plugin) == value, "a valid field is kept to the bit");
    }
  }
  PluginPointer const parsed =
      create(subject, {{"plugin_namespace", "sts", PluginFieldType::kCHAR, 3}, {"plugin_version", "1", PluginFieldType::kCHAR, 1}, field(good)},
             TensorRTPhase::kBUILD);
  report.check(parsed != nullptr && serializedValue(*parsed) == good, "the attributes that name the plugin are tolerated");

  float const infinite = std::numeric_limits<float>::infinity();
  float const nan = std::numeric_limits<float>::quiet_NaN();
  float const zero = 0.0F;
  float const negative = -0.5F;
  double const wide = 0.125;
  int32_t const integer = 1;
  float const two[] = {good, good};
  struct Wrong {
    char const* what;
    std::vector<PluginField> fields;
  };
  std::vector<Wrong> const wrong{
      {"no field", {}},
      {"infinite", {field(infinite)}},
      {"not a number", {field(nan)}},
      {"zero", {field(zero)}},
      {"negative", {field(negative)}},
      {"float64", {{name, &wide, PluginFieldType::kFLOAT64, 1}}},
      {"int32", {{name, &integer, PluginFieldType::kINT32, 1}}},
      {"two numbers", {{name, two, PluginFieldType::kFLOAT32, 2}}},
      {"no numbers", {{name, two, PluginFieldType::kFLOAT32, 0}}},
      {"no data", {{name, nullptr, PluginFieldType::kFLOAT32, 1}}},
      {"given twice", {field(good), field(good)}},
      {"unknown field", {field(good), {"keep", &integer, PluginFieldType::kINT32, 1}}},
      {"field without a name", {{nullptr, &good, PluginFieldType::kFLOAT32, 1}}},
      {"only the parser's", {{"plugin_version", "1", PluginFieldType::kCHAR, 1}}},
  };
  std::vector<std::string>& errors = subject.finder.logger.errors;
  for (Wrong const& one : wrong) {
    for (TensorRTPhase const phase : {TensorRTPhase::kBUILD, TensorRTPhase::kRUNTIME}) {
      errors.clear();
      bool const refused = create(subject, one.fields, phase) == nullptr;
      report.check(refused && errors.size() == 1 && errors[0].find(subject.op.field) != std::string::npos,
                   std::string("refused, and the field named in one message: ") + one.what);
    }
  }
  errors.clear();
  report.check(PluginPointer(subject.creator.createPlugin("layer", nullptr, TensorRTPhase::kBUILD)) == nullptr && errors.size() == 1,
               "no collection of fields is refused with one message");

  subject.library.setFinder(nullptr);
  std::string const text = standardError([&] { report.check(create(subject, {}, TensorRTPhase::kBUILD) == nullptr, "refused without a logger"); });
  report.check(text.find(subject.op.field) != std::string::npos, "without a logger, messages go to the standard error output");
  subject.library.setFinder(&subject.finder);
}

void checkCapabilities(Subject const& subject) {
  Report& report = subject.report;
  PluginPointer const plugin = createForBuild(subject, 0.25F);
  struct Expected {
    PluginCapabilityType type;
    char const* kind;
  };
  for (Expected const& one :
       {Expected{PluginCapabilityType::kCORE, "PLUGIN_V3ONE_CORE"}, Expected{PluginCapabilityType::kBUILD, "PLUGIN_V3ONE_BUILD"},
        Expected{PluginCapabilityType::kRUNTIME, "PLUGIN_V3ONE_RUNTIME"}}) {
    nvinfer1::IPluginCapability* const found = plugin->getCapabilityInterface(one.type);
    report.check(found != nullptr && std::strcmp(found->getInterfaceInfo().kind, one.kind) == 0, one.kind);
    report.check(found == plugin->getCapabilityInterface(one.type), "asked again, the same interface");
  }
  report.check(plugin->getCapabilityInterface(static_cast<PluginCapabilityType>(3)) == nullptr, "no fourth interface");
  report.check(core(*plugin).getPluginName() == subject.op.name, "name");
  report.check(std::strcmp(core(*plugin).getPluginVersion(), "1") == 0, "version is 1");
  report.check(std::strcmp(core(*plugin).getPluginNamespace(), "sts") == 0, "namespace is sts");
  report.check(build(*plugin).getNbOutputs() == static_cast<int32_t>(subject.op.outputs.size()), "number of outputs");
  report.check(build(*plugin).getNbTactics() == 0, "no tactics of its own");
  report.check(runtime(*plugin).setTactic(0) == 0, "the default tactic can be set");
}

void checkSerialization(Subject const& subject) {
  Report& report = subject.report;
  for (float const value : {1e-6F, 0.08838834764F}) {
    PluginPointer built = createForBuild(subject, value);
    nvinfer1::PluginFieldCollection const* const fields = runtime(*built).getFieldsToSerialize();
    if (!report.check(fields != nullptr && fields->nbFields == 1, "one field is serialized")) continue;
    report.check(fields->fields[0].name == subject.op.field && fields->fields[0].type == PluginFieldType::kFLOAT32 && fields->fields[0].length == 1,
                 "it has the name and type that the creator asks for");
    report.check(serializedValue(*built) == value, "its value is that of the build");
    PluginPointer const loaded = createForRuntime(subject, *built);
    built.reset();
    report.check(serializedValue(*loaded) == value, "a deserialized plugin has the same value");
    PluginPointer const again = createForRuntime(subject, *loaded);
    report.check(serializedValue(*again) == value, "and so has one that was serialized twice");
  }
}

void checkClones(Subject const& subject) {
  Report& report = subject.report;
  float const value = 3e-5F;
  PluginPointer built = createForBuild(subject, value);
  PluginPointer loaded = createForRuntime(subject, *built);
  ResourceContext context;
  PluginPointer const ofBuilt(built->clone());
  PluginPointer const ofLoaded(loaded->clone());
  PluginPointer const attached(runtime(*loaded).attachToContext(&context));
  PluginPointer const attachedToo(runtime(*loaded).attachToContext(&context));
  report.check(ofBuilt != nullptr && ofBuilt != built, "a clone of the build's plugin is another object");
  report.check(ofLoaded != nullptr && ofLoaded != loaded, "a clone of the engine's plugin is another object");
  report.check(attached != nullptr && attachedToo != nullptr && attached != loaded && attached != attachedToo, "every context has its own plugin");
  built.reset();
  loaded.reset();
  for (PluginPointer const* const one : {&ofBuilt, &ofLoaded, &attached, &attachedToo}) {
    report.check(*one != nullptr && serializedValue(**one) == value, "a clone outlives its original and has its value");
  }
  if (ofBuilt != nullptr) report.check(build(*ofBuilt).getNbOutputs() == static_cast<int32_t>(subject.op.outputs.size()), "a clone can build");
}

}  // namespace sts::conformance
