// Enqueue, on the device or (STS_HOST_ENQUEUE) on the host.
#include <cuda_runtime_api.h>

#include <cstring>
#include <stdexcept>

#include "../support/data.h"
#include "../support/memory.h"
#include "phases.h"

namespace sts::conformance {
namespace {

constexpr float kValue = 0.25F;
constexpr uint8_t kUnwritten = 0xEE;

// Where an input's shape is all that is read, its address is one that cannot be read.
void const* const kUnreadable = reinterpret_cast<void const*>(uintptr_t{256});

using Buffers = std::vector<std::unique_ptr<Buffer>>;

// The device memory of one call.
struct Call {
  std::vector<nvinfer1::PluginTensorDesc> tensors;
  Buffers buffers;
  std::vector<void const*> inputs;
  std::vector<void*> outputs;
  std::vector<Buffer*> outputBuffers;
};

Call prepare(Operator const& op, Sizes const& sizes, nvinfer1::DataType type, Data const& data, bool onDevice) {
  Call call;
  call.tensors = describe(op, sizes, type);
  for (std::vector<uint8_t> const& bytes : data.inputs) {
    if (bytes.empty()) {
      call.inputs.push_back(kUnreadable);
      continue;
    }
    call.buffers.push_back(std::make_unique<Buffer>(bytes.size(), onDevice));
    call.buffers.back()->write(bytes);
    call.inputs.push_back(call.buffers.back()->data());
  }
  for (std::vector<int64_t> const& expected : data.expected) {
    call.buffers.push_back(std::make_unique<Buffer>(expected.size() * sizeof(int64_t), onDevice));
    call.buffers.back()->fill(kUnwritten);
    call.outputs.push_back(call.buffers.back()->data());
    call.outputBuffers.push_back(call.buffers.back().get());
  }
  return call;
}

bool isExpected(Call const& call, Data const& data) {
  for (size_t output = 0; output < data.expected.size(); ++output) {
    std::vector<uint8_t> const bytes = call.outputBuffers[output]->read();
    if (std::memcmp(bytes.data(), data.expected[output].data(), bytes.size()) != 0) return false;
  }
  return true;
}

bool guarded(Call const& call) {
  bool result = true;
  for (std::unique_ptr<Buffer> const& buffer : call.buffers) result = result && buffer->guarded();
  return result;
}

class Context {
 public:
  Context(Subject const& subject, bool onDevice) : mOp(subject.op) {
    PluginPointer const built = createForBuild(subject, kValue);
    auto const tensors = profile(mOp, mOp.largest, nvinfer1::DataType::kFLOAT);
    auto const inputs = static_cast<int32_t>(mOp.inputs.size());
    auto const outputs = static_cast<int32_t>(mOp.outputs.size());
    mWorkspaceSize = build(*built).getWorkspaceSize(tensors.data(), inputs, tensors.data() + inputs, outputs);
    mWorkspace = std::make_unique<Buffer>(mWorkspaceSize, onDevice);
    PluginPointer const loaded = createForRuntime(subject, *built);
    mPlugin.reset(runtime(*loaded).attachToContext(&mResources));
    if (onDevice && cudaStreamCreateWithFlags(&mStream, cudaStreamNonBlocking) != cudaSuccess) throw std::runtime_error("no CUDA stream");
  }
  ~Context() {
    if (mStream != nullptr) static_cast<void>(cudaStreamDestroy(mStream));
  }
  Context(Context const&) = delete;
  Context& operator=(Context const&) = delete;

  bool changeShapes(Call const& call) const {
    auto const inputs = static_cast<int32_t>(mOp.inputs.size());
    return runtime(*mPlugin).onShapeChange(call.tensors.data(), inputs, call.tensors.data() + inputs, static_cast<int32_t>(mOp.outputs.size())) == 0;
  }
  bool enqueue(Call const& call, bool withWorkspace = true) const {
    return runtime(*mPlugin).enqueue(call.tensors.data(), call.tensors.data() + mOp.inputs.size(), call.inputs.data(), call.outputs.data(),
                                     withWorkspace ? mWorkspace->data() : nullptr, mStream) == 0;
  }
  bool finish() const { return mStream == nullptr || cudaStreamSynchronize(mStream) == cudaSuccess; }
  bool workspaceServes(Sizes const& sizes) const { return mWorkspaceSize >= mOp.workspace(sizes); }
  bool workspaceGuarded() const { return mWorkspace->guarded(); }

  // Captures one enqueue in a CUDA graph and launches it twice.
  bool replay(Call const& call) const {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    bool ok = cudaStreamBeginCapture(mStream, cudaStreamCaptureModeGlobal) == cudaSuccess;
    ok = enqueue(call) && ok;
    ok = cudaStreamEndCapture(mStream, &graph) == cudaSuccess && ok;
    ok = ok && cudaGraphInstantiateWithFlags(&executable, graph, 0) == cudaSuccess;
    for (int launch = 0; ok && launch < 2; ++launch) ok = cudaGraphLaunch(executable, mStream) == cudaSuccess;
    ok = finish() && ok;
    if (executable != nullptr) static_cast<void>(cudaGraphExecDestroy(executable));
    if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
    return ok;
  }

 private:
  Operator const& mOp;
  ResourceContext mResources;
  PluginPointer mPlugin;
  size_t mWorkspaceSize = 0;
  std::unique_ptr<Buffer> mWorkspace;
  cudaStream_t mStream = nullptr;
};

void checkCase(Subject const& subject, Context const& context, Sizes const& sizes, nvinfer1::DataType type, Data const& data, bool onDevice,
               std::string const& against) {
  Call const call = prepare(subject.op, sizes, type, data, onDevice);
  std::string const what = "type " + std::to_string(static_cast<int32_t>(type)) + ", " + std::to_string(sizes.at("rows")) + " rows";
  if (!subject.report.check(context.workspaceServes(sizes), what + ": the workspace is large enough")) return;  // it would be overrun
  bool const done = context.changeShapes(call) && context.enqueue(call) && context.finish();
  subject.report.check(done && isExpected(call, data), what + ": equals " + against + " to the index");
  subject.report.check(guarded(call) && context.workspaceGuarded(), what + ": nothing is written elsewhere");
  if (!onDevice) return;
  Call const captured = prepare(subject.op, sizes, type, data, onDevice);
  subject.report.check(context.replay(captured) && isExpected(captured, data), what + ": the same from a CUDA graph");
}

// enqueue may not write, and must say why it does not.
void checkRefusals(Subject const& subject, Context const& context, bool onDevice) {
  Operator const& op = subject.op;
  Data const data = clearData(op, op.cases[0], nvinfer1::DataType::kFLOAT, kValue);
  std::vector<std::string>& errors = subject.finder.logger.errors;
  auto const refuses = [&](Call const& call, bool withWorkspace, std::string const& what) {
    errors.clear();
    bool const refused = !context.enqueue(call, withWorkspace) && context.finish() && errors.size() == 1;
    bool unwritten = true;
    for (Buffer const* const buffer : call.outputBuffers) {
      for (uint8_t const byte : buffer->read()) unwritten = unwritten && byte == kUnwritten;
    }
    subject.report.check(refused && unwritten, what + " is refused with one message");
  };
  auto const fresh = [&] { return prepare(op, op.cases[0], nvinfer1::DataType::kFLOAT, data, onDevice); };
  refuses(fresh(), false, "no workspace");
  Call call = fresh();
  call.tensors[0].type = nvinfer1::DataType::kINT8;
  refuses(call, true, "another type");
  call = fresh();
  ++call.tensors[1].dims.d[0];
  refuses(call, true, "sizes that do not fit");
  call = fresh();
  call.inputs[0] = nullptr;
  refuses(call, true, "an input without an address");
  call = fresh();
  call.outputs.back() = nullptr;
  refuses(call, true, "an output without an address");
}

}  // namespace

void checkEnqueue(Subject const& subject) {
  Operator const& op = subject.op;
  bool const onDevice = !subject.library.hostEnqueue();
  std::vector<nvinfer1::DataType> const types{nvinfer1::DataType::kFLOAT, nvinfer1::DataType::kHALF, nvinfer1::DataType::kBF16};
  // Back to the first sizes at the end: nothing of the others may stay.
  std::vector<Sizes> order = op.cases;
  order.push_back(op.cases[0]);
  if (onDevice && deviceCount() == 0) {
    subject.report.skip(static_cast<int>(types.size() * order.size() * 8 + 5), "enqueue needs a GPU, and CUDA finds none here");
    return;
  }
  Context const context(subject, onDevice);
  for (nvinfer1::DataType const type : types) {
    for (Sizes const& sizes : order) {
      checkCase(subject, context, sizes, type, clearData(op, sizes, type, kValue), onDevice, "the reference");
      if (onDevice) checkCase(subject, context, sizes, type, tiedData(op, sizes, type, kValue), onDevice, "the host's kernels where all is tied");
    }
  }
  checkRefusals(subject, context, onDevice);
}

}  // namespace sts::conformance
