#include "fields.h"

#include <cmath>
#include <cstring>

#include "log.h"

namespace sts::trt {
namespace {

// The ONNX attributes by which the parser finds the creator.  It fills only fields that getFieldNames lists, but others may pass all attributes.
constexpr char const* kParserFields[] = {"plugin_namespace", "plugin_version"};

bool isParserField(char const* name) noexcept {
  for (char const* known : kParserFields) {
    if (std::strcmp(name, known) == 0) return true;
  }
  return false;
}

}  // namespace

bool readField(Operator const& op, nvinfer1::PluginFieldCollection const* fields, float& value) noexcept {
  char const* const plugin = op.name;
  if (fields == nullptr || fields->nbFields < 0 || (fields->nbFields > 0 && fields->fields == nullptr)) {
    logError("sts::%s: no fields were given; it needs \"%s\"", plugin, op.attribute);
    return false;
  }
  bool found = false;
  for (int32_t i = 0; i < fields->nbFields; ++i) {
    nvinfer1::PluginField const& field = fields->fields[i];
    if (field.name != nullptr && isParserField(field.name)) continue;
    if (field.name == nullptr || std::strcmp(field.name, op.attribute) != 0) {
      logError("sts::%s: unknown field \"%s\"; it has only \"%s\"", plugin, field.name == nullptr ? "" : field.name, op.attribute);
      return false;
    }
    if (found) {
      logError("sts::%s: field \"%s\" is given twice", plugin, op.attribute);
      return false;
    }
    if (field.type != nvinfer1::PluginFieldType::kFLOAT32 || field.length != 1 || field.data == nullptr) {
      logError("sts::%s: field \"%s\" must be one float32", plugin, op.attribute);
      return false;
    }
    std::memcpy(&value, field.data, sizeof(value));  // fields of an engine need not be aligned
    if (!std::isfinite(value) || value <= 0.0F) {
      logError("sts::%s: field \"%s\" is %g; it must be finite and above 0", plugin, op.attribute, static_cast<double>(value));
      return false;
    }
    found = true;
  }
  if (!found) logError("sts::%s: field \"%s\" is missing", plugin, op.attribute);
  return found;
}

}  // namespace sts::trt
