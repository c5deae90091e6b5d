#include "expressions.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace sts::conformance {
namespace {

using nvinfer1::DimensionOperation;

int64_t apply(DimensionOperation operation, int64_t a, int64_t b) {
  switch (operation) {
    case DimensionOperation::kSUM: return a + b;
    case DimensionOperation::kPROD: return a * b;
    case DimensionOperation::kMAX: return std::max(a, b);
    case DimensionOperation::kMIN: return std::min(a, b);
    case DimensionOperation::kSUB: return a - b;
    case DimensionOperation::kEQUAL: return a == b;
    case DimensionOperation::kLESS: return a < b;
    case DimensionOperation::kFLOOR_DIV: return a / b;
    case DimensionOperation::kCEIL_DIV: return (a + b - 1) / b;
  }
  throw std::invalid_argument("no dimension operation");
}

bool isOperation(DimensionOperation operation) {
  auto const number = static_cast<int32_t>(operation);
  return number >= 0 && number <= static_cast<int32_t>(DimensionOperation::kCEIL_DIV);
}

}  // namespace

int64_t Dimension::Impl::getConstantValue() const { return kind == Kind::kConstant ? value : std::numeric_limits<int64_t>::min(); }

Dimension::Dimension(int64_t constant) {
  mNode.value = constant;
  mImpl = &mNode;
}

std::unique_ptr<Dimension> Dimension::variable(int32_t index) {
  auto result = std::make_unique<Dimension>(index);
  result->mNode.kind = Kind::kVariable;
  return result;
}

Dimension::Dimension(DimensionOperation operation, Dimension const& first, Dimension const& second) {
  mNode.kind = Kind::kOperation;
  mNode.operation = operation;
  mNode.first = &first;
  mNode.second = &second;
  mImpl = &mNode;
}

int64_t Dimension::evaluate(std::vector<int64_t> const& values) const {
  switch (mNode.kind) {
    case Kind::kConstant: return mNode.value;
    case Kind::kVariable: return values.at(static_cast<size_t>(mNode.value));
    case Kind::kOperation: break;
  }
  return apply(mNode.operation, mNode.first->evaluate(values), mNode.second->evaluate(values));
}

ExpressionBuilder::ExpressionBuilder() { mImpl = &mMade; }

Dimension const* ExpressionBuilder::variable(int32_t index) {
  mMade.owned.push_back(Dimension::variable(index));
  return mMade.owned.back().get();
}

bool ExpressionBuilder::owns(nvinfer1::IDimensionExpr const* dimension) const {
  return std::any_of(mMade.owned.begin(), mMade.owned.end(), [&](auto const& made) { return made.get() == dimension; });
}

nvinfer1::IDimensionExpr const* ExpressionBuilder::Impl::constant(int64_t value) {
  owned.push_back(std::make_unique<Dimension>(value));
  return owned.back().get();
}

nvinfer1::IDimensionExpr const* ExpressionBuilder::Impl::operation(DimensionOperation op, nvinfer1::IDimensionExpr const& first,
                                                                   nvinfer1::IDimensionExpr const& second) {
  if (!isOperation(op)) return nullptr;
  if (first.isConstant() && second.isConstant()) return constant(apply(op, first.getConstantValue(), second.getConstantValue()));
  owned.push_back(std::make_unique<Dimension>(op, static_cast<Dimension const&>(first), static_cast<Dimension const&>(second)));
  return owned.back().get();
}

// Neither operator has outputs whose size depends on values.
nvinfer1::IDimensionExpr const* ExpressionBuilder::Impl::declareSizeTensor(int32_t, nvinfer1::IDimensionExpr const&,
                                                                           nvinfer1::IDimensionExpr const&) {
  return nullptr;
}

}  // namespace sts::conformance
