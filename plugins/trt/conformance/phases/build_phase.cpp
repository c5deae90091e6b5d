// What the builder asks a plugin.
#include <algorithm>

#include "../support/expressions.h"
#include "phases.h"

namespace sts::conformance {
namespace {

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::TensorFormat;

int32_t inputs(Operator const& op) { return static_cast<int32_t>(op.inputs.size()); }
int32_t outputs(Operator const& op) { return static_cast<int32_t>(op.outputs.size()); }

DynamicPluginTensorDesc const* outputsOf(std::vector<DynamicPluginTensorDesc> const& tensors, Operator const& op) {
  return tensors.data() + op.inputs.size();
}

size_t workspaceOf(Subject const& subject, nvinfer1::IPluginV3& plugin, Sizes const& sizes) {
  auto const tensors = profile(subject.op, sizes, DataType::kFLOAT);
  return build(plugin).getWorkspaceSize(tensors.data(), inputs(subject.op), outputsOf(tensors, subject.op), outputs(subject.op));
}

int32_t configureFor(Subject const& subject, nvinfer1::IPluginV3& plugin, Sizes const& sizes, DataType type) {
  auto const tensors = profile(subject.op, sizes, type);
  return build(plugin).configurePlugin(tensors.data(), inputs(subject.op), outputsOf(tensors, subject.op), outputs(subject.op));
}

// Fills `shapes` with one dimension per name of a size, so that equal sizes are equal expressions, as in a network.
std::vector<nvinfer1::DimsExprs> inputShapes(Operator const& op, std::map<std::string, nvinfer1::IDimensionExpr const*> const& sizes) {
  std::vector<nvinfer1::DimsExprs> shapes(op.inputs.size());
  for (size_t input = 0; input < op.inputs.size(); ++input) {
    shapes[input].nbDims = static_cast<int32_t>(op.inputs[input].axes.size());
    for (size_t axis = 0; axis < op.inputs[input].axes.size(); ++axis) shapes[input].d[axis] = sizes.at(op.inputs[input].axes[axis]);
  }
  return shapes;
}

void checkEvaluated(Subject const& subject, std::vector<nvinfer1::DimsExprs> const& shapes, Sizes const& sizes, std::vector<int64_t> const& values,
                    std::string const& how) {
  for (size_t output = 0; output < shapes.size(); ++output) {
    Tensor const& tensor = subject.op.outputs[output];
    nvinfer1::Dims const expected = dims(tensor, sizes);
    bool right = shapes[output].nbDims == expected.nbDims;
    for (int32_t axis = 0; right && axis < expected.nbDims; ++axis) {
      auto const* const dimension = static_cast<Dimension const*>(shapes[output].d[axis]);
      right = dimension != nullptr && dimension->evaluate(values) == expected.d[axis];
    }
    subject.report.check(right, how + " shape of " + tensor.name);
  }
}

}  // namespace

void checkOutputTypes(Subject const& subject) {
  Operator const& op = subject.op;
  PluginPointer const plugin = createForBuild(subject, 0.25F);
  for (DataType const type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
    std::vector<DataType> given;
    for (Tensor const& tensor : op.inputs) given.push_back(tensor.types.size() == 1 ? tensor.types[0] : type);
    std::vector<DataType> types(op.outputs.size(), DataType::kFLOAT);
    bool const done = build(*plugin).getOutputDataTypes(types.data(), outputs(op), given.data(), inputs(op)) == 0;
    bool const right = std::all_of(types.begin(), types.end(), [](DataType one) { return one == DataType::kINT64; });
    subject.report.check(done && right, "all outputs are int64");
    subject.report.check(build(*plugin).getOutputDataTypes(types.data(), outputs(op), given.data(), inputs(op) - 1) != 0,
                         "too few inputs are refused");
  }
}

void checkOutputShapes(Subject const& subject) {
  Operator const& op = subject.op;
  PluginPointer const plugin = createForBuild(subject, 0.25F);

  // Every dimension known at run time only; asked once, evaluated for every case.
  ExpressionBuilder builder;
  std::map<std::string, nvinfer1::IDimensionExpr const*> variables;
  for (size_t index = 0; index < op.free.size(); ++index) variables[op.free[index]] = builder.variable(static_cast<int32_t>(index));
  std::vector<nvinfer1::DimsExprs> const symbolic = inputShapes(op, variables);
  std::vector<nvinfer1::DimsExprs> shapes(op.outputs.size());
  auto const ask = [&](std::vector<nvinfer1::DimsExprs> const& given, int32_t count, ExpressionBuilder& with) {
    return build(*plugin).getOutputShapes(given.data(), count, nullptr, 0, shapes.data(), outputs(op), with);
  };
  subject.report.check(ask(symbolic, inputs(op), builder) == 0, "symbolic shapes are given");
  for (nvinfer1::DimsExprs const& shape : shapes) {
    for (int32_t axis = 0; axis < shape.nbDims; ++axis) {
      subject.report.check(builder.owns(shape.d[axis]) && !shape.d[axis]->isConstant(), "dimensions are the builder's expressions");
    }
  }
  for (Sizes const& sizes : op.cases) {
    std::vector<int64_t> values;
    for (std::string const& name : op.free) values.push_back(sizes.at(name));
    checkEvaluated(subject, shapes, sizes, values, "symbolic");
  }

  // Every dimension a constant.
  for (Sizes const& sizes : op.cases) {
    ExpressionBuilder constants;
    std::map<std::string, nvinfer1::IDimensionExpr const*> known;
    for (std::string const& name : op.free) known[name] = constants.constant(sizes.at(name));
    subject.report.check(ask(inputShapes(op, known), inputs(op), constants) == 0, "constant shapes are given");
    for (nvinfer1::DimsExprs const& shape : shapes) {
      for (int32_t axis = 0; axis < shape.nbDims; ++axis) subject.report.check(shape.d[axis]->isConstant(), "constants give constants");
    }
    checkEvaluated(subject, shapes, sizes, {}, "constant");
  }

  for (size_t input = 0; input < op.inputs.size(); ++input) {
    std::vector<nvinfer1::DimsExprs> wrong = symbolic;
    ++wrong[input].nbDims;
    wrong[input].d[wrong[input].nbDims - 1] = symbolic[0].d[0];
    subject.report.check(ask(wrong, inputs(op), builder) != 0, "one dimension too many is refused: " + op.inputs[input].name);
    wrong[input].nbDims -= 2;
    subject.report.check(ask(wrong, inputs(op), builder) != 0, "one dimension too few is refused: " + op.inputs[input].name);
  }
  subject.report.check(ask(symbolic, inputs(op) - 1, builder) != 0, "too few inputs are refused");
}

void checkFormats(Subject const& subject) {
  Operator const& op = subject.op;
  PluginPointer const plugin = createForBuild(subject, 0.25F);
  auto const asks = [&](size_t position, std::vector<DynamicPluginTensorDesc> const& tensors) {
    return build(*plugin).supportsFormatCombination(static_cast<int32_t>(position), tensors.data(), inputs(op), outputs(op));
  };
  // The builder decides position by position: later ones hold anything and must not be read.
  std::vector<DynamicPluginTensorDesc> const unset = [&] {
    auto tensors = profile(op, op.cases[0], DataType::kFLOAT);
    for (DynamicPluginTensorDesc& tensor : tensors) {
      tensor.desc.type = DataType::kINT4;
      tensor.desc.format = TensorFormat::kDHWC;
    }
    return tensors;
  }();
  std::vector<std::vector<DynamicPluginTensorDesc>> prefixes{unset};
  size_t combinations = 0;
  for (size_t position = 0; position < op.tensors(); ++position) {
    Tensor const& tensor = op.tensor(position);
    std::vector<std::vector<DynamicPluginTensorDesc>> next;
    for (std::vector<DynamicPluginTensorDesc> tensors : prefixes) {
      for (int32_t type = 0; type < nvinfer1::EnumMax<DataType>(); ++type) {
        for (int32_t format = 0; format < nvinfer1::EnumMax<TensorFormat>(); ++format) {
          tensors[position].desc.type = static_cast<DataType>(type);
          tensors[position].desc.format = static_cast<TensorFormat>(format);
          bool expected = static_cast<TensorFormat>(format) == TensorFormat::kLINEAR &&
                          std::count(tensor.types.begin(), tensor.types.end(), static_cast<DataType>(type)) == 1;
          if (tensor.sameTypeAs >= 0) expected = expected && tensors[position].desc.type == tensors[static_cast<size_t>(tensor.sameTypeAs)].desc.type;
          subject.report.check(asks(position, tensors) == expected, tensor.name + ", type " + std::to_string(type) + ", format " +
                                                                        std::to_string(format) + (expected ? " is supported" : " is refused"));
          if (expected) next.push_back(tensors);
        }
      }
    }
    prefixes = next;
  }
  combinations = prefixes.size();
  subject.report.check(combinations <= static_cast<size_t>(build(*plugin).getFormatCombinationLimit()), "the builder tries all combinations");
  auto const valid = prefixes.at(0);
  subject.report.check(!build(*plugin).supportsFormatCombination(-1, valid.data(), inputs(op), outputs(op)), "position -1 is refused");
  subject.report.check(!asks(op.tensors(), valid), "a position after the last is refused");
  subject.report.check(!build(*plugin).supportsFormatCombination(0, valid.data(), inputs(op) - 1, outputs(op)), "too few inputs are refused");
}

void checkConfigure(Subject const& subject) {
  Operator const& op = subject.op;
  PluginPointer const plugin = createForBuild(subject, 0.25F);
  for (DataType const type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
    subject.report.check(configureFor(subject, *plugin, op.largest, type) == 0, "a profile for all cases is accepted");
    for (Sizes const& sizes : op.cases) subject.report.check(configureFor(subject, *plugin, sizes, type) == 0, "a profile is accepted");
  }
  Sizes huge = op.largest;
  huge["rows"] = (int64_t{1} << 20) + 1;
  if (op.name == "LastTokenTopK") huge["kept"] = huge["rows"] - huge["visual"] + huge["visual_keep"];
  subject.report.check(configureFor(subject, *plugin, huge, DataType::kFLOAT) != 0, "more rows than the kernels support are refused");
  auto const tensors = profile(op, op.largest, DataType::kFLOAT);
  subject.report.check(build(*plugin).configurePlugin(tensors.data(), inputs(op) - 1, outputsOf(tensors, op), outputs(op)) != 0,
                       "too few inputs are refused");
}

void checkWorkspace(Subject const& subject) {
  Operator const& op = subject.op;
  PluginPointer const plugin = createForBuild(subject, 0.25F);
  size_t const largest = workspaceOf(subject, *plugin, op.largest);
  for (Sizes const& sizes : op.cases) {
    size_t const given = workspaceOf(subject, *plugin, sizes);
    subject.report.check(given > 0 && given >= op.workspace(sizes), "what the kernels need");
    subject.report.check(largest >= op.workspace(sizes), "the profile's workspace serves every case");
    for (std::string const& name : op.free) {
      Sizes more = sizes;
      more[name] *= 2;
      if (name == "kv_heads") more["heads"] *= 2;
      more["kept"] = 1;  // no size of an input
      subject.report.check(workspaceOf(subject, *plugin, more) >= given, "never less for more " + name);
    }
  }
}

}  // namespace sts::conformance
