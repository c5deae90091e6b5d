"""The conformance harness finds faults: each is put into a copy of the plugins' sources, and must fail in its stage."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.plugins.trt_build import HOST_TARGETS, REPOSITORY, compile_targets, configure, need_tools, one_root, run

# File, what is replaced, by what, the stage that must fail.
FAULTS = [
    ("trt/creator.cpp", "return kVersion;", 'return "2";', "creator"),
    ("trt/fields.cpp", "value <= 0.0F", "value < 0.0F", "fields"),
    ("trt/fields.cpp", "field.length != 1", "field.length < 1", "fields"),
    ("trt/plugin.cpp", "return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);", "return nullptr;", "capabilities"),
    ("trt/plugin.cpp", "nvinfer1::DataType::kINT64);  //", "nvinfer1::DataType::kINT32);  //", "output types"),
    ("trt/plugin.cpp", "DimensionOperation::kSUB", "DimensionOperation::kMAX", "output shapes"),
    ("operators/last_token_topk_operator.cpp", "kKvHeads, kRows, kHeadDim}, 0}", "kKvHeads, kRows, kHeadDim}}", "formats"),
    ("operators/repulsion_select_operator.cpp", '"quota", Types::kBool', '"quota", Types::kInt64', "formats"),
    ("trt/plugin.cpp", "tensor.format == nvinfer1::TensorFormat::kLINEAR && ", "", "formats"),
    ("trt/plugin.cpp", "(in, nbInputs, out, nbOutputs) == 0", "(in, nbInputs, out, nbOutputs) == 1", "configure"),
    ("trt/plugin.cpp", "size = std::max<int64_t>(size, inputs[i].max.d[axis]);", "size = inputs[i].min.d[axis];", "workspace"),
    ("trt/plugin.cpp", "PluginFieldType::kFLOAT32, 1)", "PluginFieldType::kFLOAT64, 1)", "serialization"),
    ("trt/plugin.cpp", "Plugin(mOperator, mValue); }", "Plugin(mOperator, 1.0F); }", "clones"),
    ("operators/sizes.cpp", "if (size != kUnknown && size != dims[axis]) {", "if (size < -1) {", "shape change"),
    (
        "operators/last_token_topk_operator.cpp",
        "TopK(shapeOf(call.sizes), call.type, call.inputs[0], call.inputs[1],",
        "TopK(shapeOf(call.sizes), call.type, call.inputs[1], call.inputs[0],",
        "enqueue",
    ),
    ("trt/plugin.cpp", "kernelType(inputDesc[0].type), mValue,", "kernelType(inputDesc[0].type), 1.0F,", "enqueue"),
]


@one_root
def test_faults_are_found(root: Path, tmp_path: Path) -> None:
    """Compiled incrementally in one folder, since each fault touches one file."""
    need_tools()
    source, folder = tmp_path / "plugins", tmp_path / "build"
    shutil.copytree(REPOSITORY / "plugins", source)
    configure(source, folder, root)
    compile_targets(folder, HOST_TARGETS)
    for file, before, after, stage in FAULTS:
        path = source / file
        original = path.read_text()
        assert original.count(before) == 1, f"{file}: {before}"
        path.write_text(original.replace(before, after))
        result = run(["cmake", "--build", folder, "--parallel", "2", "--target", "sts_plugins_host_enqueue"])
        path.write_text(original)
        if result.returncode != 0:
            pytest.fail(f"{file}: {after} does not compile\n{result.stdout[-3000:]}")
        result = run([folder / "sts_conformance", folder / "libsts_plugins_host_enqueue.so"])
        assert result.returncode == 1, f"{file}: {after} was not found\n{result.stdout}"
        assert re.search(rf"^FAILED  \w+, {stage}: ", result.stdout, re.MULTILINE), f"{file}: {after}\n{result.stdout[:3000]}"
