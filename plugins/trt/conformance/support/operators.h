// The two operators as sts_export/pruning/stage1 and stage2 document them, apart from the plugins' own tables.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "tensorrt.h"

namespace sts::conformance {

using Sizes = std::map<std::string, int64_t>;  // of the named dimensions

struct Tensor {
  std::string name;
  std::vector<nvinfer1::DataType> types;
  std::vector<std::string> axes;
  int32_t sameTypeAs = -1;  // an earlier tensor
};

struct Operator {
  std::string name;
  std::string field;
  std::vector<Tensor> inputs;
  std::vector<Tensor> outputs;
  std::vector<Sizes> cases;           // valid sizes, those of the outputs included
  Sizes largest;                      // of an optimization profile that covers all cases
  std::vector<Sizes> inconsistent;    // sizes of tensors of the right rank that the operator must refuse
  std::vector<std::string> free;      // dimensions of the inputs
  size_t (*workspace)(Sizes const&);  // the kernels' formula

  Tensor const& tensor(size_t position) const { return position < inputs.size() ? inputs[position] : outputs[position - inputs.size()]; }
  size_t tensors() const { return inputs.size() + outputs.size(); }
};

std::vector<Operator> const& operators();

nvinfer1::Dims dims(Tensor const& tensor, Sizes const& sizes);
int64_t volume(nvinfer1::Dims const& dims);
size_t bytes(nvinfer1::DataType type);  // of one element

// Descriptions of the operator's tensors with these sizes.  Types: floats have `type`, others their only one.
std::vector<nvinfer1::PluginTensorDesc> describe(Operator const& op, Sizes const& sizes, nvinfer1::DataType type);
// The same for the build: an optimization profile from one row of everything to `sizes`.
std::vector<nvinfer1::DynamicPluginTensorDesc> profile(Operator const& op, Sizes const& sizes, nvinfer1::DataType type);

}  // namespace sts::conformance
