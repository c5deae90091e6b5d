"""What exports cost in memory, measured in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from sts_export.checkpoints.safetensors_header import encode_header
from sts_export.testing.checkpoints import CHAT_TEMPLATE
from sts_export.testing.public_models.tokenizers import llama_tokenizer

_MEASURE = """
import json, resource, sys
sys.modules["torch"] = None  # installed here, for the reference; importing it fails
import PIL.Image, transformers, transformers.configuration_utils
from transformers import AutoTokenizer, CLIPImageProcessorPil
import onnxscript, onnx_ir, onnx, onnx.defs, numpy, ml_dtypes, jinja2
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.graphs.decoder import part
import sts_export.requests.preprocessor
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
before = peak()
export(ExportRequest(**json.loads(sys.argv[1])))
print(peak() - before)
"""


def peak_of_export(**options: Any) -> float:
    """MB beyond the imports, in a process of its own."""
    command = [sys.executable, "-c", _MEASURE, json.dumps(options)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def sparse_checkpoint(folder: Path, vision_layers: int = 24, **text: Any) -> Path:
    """A checkpoint of true LLaVA-1.5-7B shapes, except as in ``text``, whose weights are a hole in the file: all zeros."""
    text_config = {"vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, **text}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": vision_layers, "num_attention_heads": 16}
    vision |= {"image_size": 336, "patch_size": 14}
    config = {
        "model_type": "llava",
        "image_token_index": 32000,
        "text_config": {"model_type": "llama", "max_position_embeddings": 4096, **text_config},
        "vision_config": {"model_type": "clip_vision_model", **vision},
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    llama_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    sizes = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor", **sizes}))
    width, mlp, vocab = text_config["hidden_size"], text_config["intermediate_size"], text_config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    llm, tower, projector = "language_model.model", "vision_tower.vision_model", "multi_modal_projector"
    shapes[f"{llm}.embed_tokens.weight"] = shapes["language_model.lm_head.weight"] = (vocab, width)
    shapes[f"{llm}.norm.weight"] = (width,)
    for layer in range(text_config["num_hidden_layers"]):
        name = f"{llm}.layers.{layer}"
        for kind in "qkvo":
            shapes[f"{name}.self_attn.{kind}_proj.weight"] = (width, width)
        shapes[f"{name}.mlp.gate_proj.weight"] = shapes[f"{name}.mlp.up_proj.weight"] = (mlp, width)
        shapes[f"{name}.mlp.down_proj.weight"] = (width, mlp)
        shapes[f"{name}.input_layernorm.weight"] = shapes[f"{name}.post_attention_layernorm.weight"] = (width,)
    shapes[f"{tower}.embeddings.class_embedding"] = (1024,)
    shapes[f"{tower}.embeddings.patch_embedding.weight"] = (1024, 3, 14, 14)
    shapes[f"{tower}.embeddings.position_embedding.weight"] = (577, 1024)
    norms = [f"{tower}.pre_layrnorm", f"{tower}.post_layernorm"]
    linears = {f"{projector}.linear_1": (width, 1024), f"{projector}.linear_2": (width, width)}
    for layer in range(vision_layers):
        name = f"{tower}.encoder.layers.{layer}"
        norms += [f"{name}.layer_norm1", f"{name}.layer_norm2"]
        linears |= {f"{name}.self_attn.{kind}_proj": (1024, 1024) for kind in ("q", "k", "v", "out")}
        linears |= {f"{name}.mlp.fc1": (4096, 1024), f"{name}.mlp.fc2": (1024, 4096)}
    for name in norms:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (1024,)
    for name, shape in linears.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    layout = [(name, "F16", shape, 2 * int(torch.Size(shape).numel())) for name, shape in shapes.items()]
    header = encode_header(layout)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + sum(nbytes for *_, nbytes in layout))
    return folder


def test_linking_a_7b_checkpoint_takes_no_memory(tmp_path: Path) -> None:
    source = sparse_checkpoint(tmp_path / "llava-1.5-7b-hf")
    assert (source / "model.safetensors").stat().st_size > 14e9
    output = tmp_path / "bundle"
    assert peak_of_export(model=str(source), output=str(output), budget="64", weights="link") < 200
    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["pruning"]["keep_stage1"], manifest["pruning"]["keep_stage2"]) == (96, 32)
    assert manifest["dtype"] == "float16"
    assert sum(file.stat().st_size for file in output.iterdir()) < 32e6


def test_copying_a_large_tensor_takes_a_bounded_amount(tmp_path: Path) -> None:
    """An embedding of 268 MB, converted in chunks."""
    options = {"vocab_size": 1 << 18, "hidden_size": 512, "intermediate_size": 64, "num_hidden_layers": 2}
    source = sparse_checkpoint(tmp_path / "source", 2, **options, num_attention_heads=4, tie_word_embeddings=True)
    output = tmp_path / "bundle"
    peak = peak_of_export(model=str(source), output=str(output), budget="64", dtype="bfloat16")
    assert (output / "weights.safetensors").stat().st_size > 268e6
    assert peak < 200
