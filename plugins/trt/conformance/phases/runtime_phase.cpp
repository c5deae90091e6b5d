// Shape changes of an execution context.
#include "phases.h"

namespace sts::conformance {
namespace {

int32_t change(Subject const& subject, nvinfer1::IPluginV3& plugin, std::vector<nvinfer1::PluginTensorDesc> const& tensors) {
  auto const inputs = static_cast<int32_t>(subject.op.inputs.size());
  return runtime(plugin).onShapeChange(tensors.data(), inputs, tensors.data() + inputs, static_cast<int32_t>(subject.op.outputs.size()));
}

// Dimensions that no other tensor has and that no rule binds.
bool isFree(std::string const& axis) { return axis == "width" || axis == "hidden"; }

}  // namespace

void checkShapeChange(Subject const& subject) {
  Operator const& op = subject.op;
  ResourceContext context;
  PluginPointer const built = createForBuild(subject, 0.25F);
  PluginPointer const loaded = createForRuntime(subject, *built);
  PluginPointer const plugin(runtime(*loaded).attachToContext(&context));
  for (nvinfer1::DataType const type : {nvinfer1::DataType::kFLOAT, nvinfer1::DataType::kHALF, nvinfer1::DataType::kBF16}) {
    for (Sizes const& sizes : op.cases) subject.report.check(change(subject, *plugin, describe(op, sizes, type)) == 0, "sizes are accepted");
  }
  std::vector<std::string>& errors = subject.finder.logger.errors;
  for (Sizes const& sizes : op.inconsistent) {
    errors.clear();
    bool const refused = change(subject, *plugin, describe(op, sizes, nvinfer1::DataType::kFLOAT)) != 0;
    subject.report.check(refused && errors.size() == 1, "sizes that the operator does not allow are refused with one message");
  }
  for (size_t position = 0; position < op.tensors(); ++position) {
    Tensor const& tensor = op.tensor(position);
    for (size_t axis = 0; axis < tensor.axes.size(); ++axis) {
      auto tensors = describe(op, op.cases[0], nvinfer1::DataType::kFLOAT);
      ++tensors[position].dims.d[axis];
      errors.clear();
      bool const accepted = change(subject, *plugin, tensors) == 0;
      subject.report.check(accepted == isFree(tensor.axes[axis]) && errors.size() == (accepted ? 0U : 1U),
                           "one more " + tensor.axes[axis] + " in " + tensor.name + " alone");
    }
    auto tensors = describe(op, op.cases[0], nvinfer1::DataType::kFLOAT);
    --tensors[position].dims.nbDims;
    errors.clear();
    subject.report.check(change(subject, *plugin, tensors) != 0 && errors.size() == 1, "one dimension too few is refused: " + tensor.name);
  }
  subject.report.check(change(subject, *plugin, describe(op, op.cases[0], nvinfer1::DataType::kFLOAT)) == 0, "refusals leave no trace");
}

}  // namespace sts::conformance
