// Dimension expressions as TensorRT's builder gives them to getOutputShapes, but evaluated here.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tensorrt.h"

namespace sts::conformance {

// A constant, a variable (a dimension that is known at run time only), or an operation on two others.
class Dimension final : public nvinfer1::IDimensionExpr {
 public:
  explicit Dimension(int64_t constant);
  static std::unique_ptr<Dimension> variable(int32_t index);
  Dimension(nvinfer1::DimensionOperation operation, Dimension const& first, Dimension const& second);

  // values: of the variables, by index.
  int64_t evaluate(std::vector<int64_t> const& values) const;

 private:
  enum class Kind { kConstant, kVariable, kOperation };
  struct Impl final : nvinfer1::apiv::VDimensionExpr {
    bool isConstant() const override { return kind == Kind::kConstant; }
    int64_t getConstantValue() const override;
    bool isSizeTensor() const override { return false; }

    Kind kind = Kind::kConstant;
    int64_t value = 0;  // the constant, or the variable's index
    nvinfer1::DimensionOperation operation{};
    Dimension const* first = nullptr;
    Dimension const* second = nullptr;
  };
  Impl mNode;
};

// Owns what it makes.  Operations on constants give constants.
class ExpressionBuilder final : public nvinfer1::IExprBuilder {
 public:
  ExpressionBuilder();
  Dimension const* variable(int32_t index);
  bool owns(nvinfer1::IDimensionExpr const* dimension) const;

 private:
  struct Impl final : nvinfer1::apiv::VExprBuilder {
    nvinfer1::IDimensionExpr const* constant(int64_t value) override;
    nvinfer1::IDimensionExpr const* operation(nvinfer1::DimensionOperation op, nvinfer1::IDimensionExpr const& first,
                                              nvinfer1::IDimensionExpr const& second) override;
    nvinfer1::IDimensionExpr const* declareSizeTensor(int32_t, nvinfer1::IDimensionExpr const&, nvinfer1::IDimensionExpr const&) override;

    std::vector<std::unique_ptr<Dimension>> owned;
  };
  Impl mMade;
};

}  // namespace sts::conformance
