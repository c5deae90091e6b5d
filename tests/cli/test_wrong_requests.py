"""Every wrong request is one line and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sts_export.testing.checkpoints import write_random_llava
from tests.cli.helpers import Work, check_refused, rejson, shorten


def retensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def shard_missing(folder: Path) -> None:
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    weight_map = dict.fromkeys(names, "a.safetensors") | {"language_model.lm_head.weight": "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def reprocessor(folder: Path, **changes: Any) -> None:
    file = folder / "processor_config.json"
    rejson(file, image_processor={**json.loads(file.read_text())["image_processor"], **changes})


NORM = "language_model.model.layers.1.input_layernorm.weight"
KEY = "language_model.model.layers.0.self_attn.k_proj.weight"


# id: (what is typed, what the line must say)
ERRORS: dict[str, tuple[Callable[[Work], list[str]], str]] = {
    # the command line itself
    "nothing-given": (lambda w: [], "required: --model"),
    "unknown-command": (lambda w: ["estimate", w.bundle], "unknown command 'estimate': choose one of export, run,"),
    "unknown-option": (lambda w: w.export("--turbo"), "unrecognized arguments: --turbo"),
    "missing-value": (lambda w: ["--model"], "argument --model: expected one argument"),
    "no-bundle": (lambda w: ["run", "--prompt", "x"], "required: BUNDLE"),
    "no-prompt": (lambda w: ["run", w.bundle], "one of the arguments --prompt --messages is required"),
    "not-a-number": (lambda w: w.export("--prune-layer", "two"), "--prune-layer: invalid int value: 'two'"),
    "unknown-choice": (lambda w: w.export("--anchor", "last"), "--anchor: invalid choice: 'last'"),
    "abbreviated-option": (lambda w: w.export("--max-new", "5"), "unrecognized arguments: --max-new 5"),
    "dashes-for-a-value": (lambda w: [*w.export(budget=None), "--budget=--"], "argument --budget: expected one argument"),
    "line-break-in-argument": (lambda w: w.export("--tur\nbo"), "unrecognized arguments: --tur bo"),
    # model
    "model-unknown": (lambda w: w.export(model="llava-9000"), "unknown model 'llava-9000': give a folder, a hub id"),
    "model-empty": (lambda w: ["--model", "", "--budget", "12"], "an empty path was given"),
    "model-unknown-user": (lambda w: w.export(model="~no-such-user/x"), "cannot be used"),
    "model-name-too-long": (lambda w: w.export(model="x" * 5000), "cannot be used (File name too long)"),
    "model-hub-id-invalid": (lambda w: w.export(model="org/na--me"), "neither a folder nor a valid hub id"),
    "model-hub-id-offline": (lambda w: w.export(model="org/name"), "org/name is not in the local cache"),
    "model-alias-offline": (lambda w: w.export(model="llava-1.5-7b"), "llava-hf/llava-1.5-7b-hf is not in the local cache"),
    "model-not-a-checkpoint": (lambda w: w.export(model=w.folder), "is not a checkpoint: it has no config.json"),
    "model-is-a-file": (lambda w: w.export(model=w.picture), "is not a folder"),
    "model-architecture": (
        lambda w: w.export_broken(lambda f: rejson(f / "config.json", model_type="paligemma")),
        "unsupported architecture 'paligemma' in config.json; supported model types: llava, llava_next, qwen2_5_vl",
    ),
    "model-other-head": (
        lambda w: w.export_broken(lambda f: rejson(f / "config.json", architectures=["LlavaForSequenceClassification"])),
        "config.json says that the model is a LlavaForSequenceClassification, but of llava only LlavaForConditionalGeneration",
    ),
    "model-quantized": (
        lambda w: w.export_broken(lambda f: rejson(f / "config.json", quantization_config={"quant_method": "gptq"})),
        "is quantized with GPTQ (quantization_config in config.json), which is not exported; export the unquantized model",
    ),
    "model-original-llava": (
        lambda w: w.export_broken(lambda f: rejson(f / "config.json", model_type="llava_llama")),
        "is a LLaVA in its authors' original format (model_type llava_llama in config.json)",
    ),
    "model-own-code": (
        lambda w: w.export_broken(lambda f: rejson(f / "config.json", auto_map={"AutoModel": "mine.Model"})),
        "brings code of its own (auto_map in config.json names mine.Model)",
    ),
    "adapter-without-weights": (
        lambda w: w.export_broken(lambda f: (f / "adapter_config.json").write_text('{"peft_type": "LORA"}')),
        "has adapter_config.json but no adapter_model.safetensors",
    ),
    "adapter-of-another-kind": (
        lambda w: w.export_broken(lambda f: (f / "adapter_config.json").write_text('{"peft_type": "IA3"}')),
        "has peft_type 'IA3', but only plain LoRA adapters are merged",
    ),
    "model-config-damaged": (
        lambda w: w.export_broken(lambda f: (f / "config.json").write_text("{")),
        "config.json is not valid JSON",
    ),
    "weights-truncated": (lambda w: w.export_broken(lambda f: shorten(f / "model.safetensors")), "is truncated"),
    "weights-missing": (lambda w: w.export_broken(lambda f: (f / "model.safetensors").unlink()), "download the weights first"),
    "weights-pickle-only": (
        lambda w: w.export_broken(lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin")),
        "pickle weights only, which are never loaded",
    ),
    "shard-missing": (lambda w: w.export_broken(shard_missing), "lacks 1 of 2 weight files (first: b.safetensors)"),
    "tensor-missing": (
        lambda w: w.export_broken(lambda f: retensor(f, lambda t: t.pop(NORM))),
        f"the checkpoint lacks {NORM}",
    ),
    "tensor-wrong-shape": (
        lambda w: w.export_broken(lambda f: retensor(f, lambda t: t.update({KEY: torch.ones(16, 48)}))),
        f"wrong shape: {KEY} is [16, 48] instead of [32, 48]",
    ),
    "tensor-unknown": (
        lambda w: w.export_broken(lambda f: retensor(f, lambda t: t.update({"adapter\nweight": torch.ones(1)}))),
        "the graphs would not use adapter weight",
    ),
    "tensor-type": (
        lambda w: w.export_broken(lambda f: retensor(f, lambda t: t.update({KEY: t[KEY].to(torch.int8)}))),
        f"unsupported stored type: {KEY} (I8)",
    ),
    "model-without-image-processor": (
        lambda w: w.export_broken(lambda f: (f / "processor_config.json").unlink()),
        "has no image processor: neither preprocessor_config.json nor an image_processor in processor_config.json",
    ),
    "tokenizer-missing": (
        lambda w: w.export_broken(lambda f: (f / "tokenizer.json").unlink()),
        "has no tokenizer.json; copy the tokenizer files",
    ),
    "tokenizer-cut": (lambda w: w.export_broken(lambda f: shorten(f / "tokenizer.json")), "cannot open the tokenizer in"),
    "tokenizer-git-lfs-pointer": (
        lambda w: w.export_broken(lambda f: (f / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")),
        "tokenizer.json is a git-lfs pointer instead of the file itself; run git lfs pull",
    ),
    "weights-git-lfs-pointer": (
        lambda w: w.export_broken(
            lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
        ),
        "model.safetensors is a git-lfs pointer",
    ),
    "image-token-of-another-model": (
        lambda w: w.export_broken(lambda f: rejson(f / "config.json", image_token_index=9)),
        "use the tokenizer that belongs to the model",
    ),
    "template-broken": (
        lambda w: w.export_broken(lambda f: (f / "chat_template.jinja").write_text("{% for %}")),
        "does not work (",
    ),
    "template-without-images": (
        lambda w: w.export_broken(lambda f: (f / "chat_template.jinja").write_text("{{ messages[0]['content'][-1]['text'] }}")),
        "makes a model that cannot be asked (the prompt has 0 <image> placeholder(s) but 1 image(s) were given); use the",
    ),
    "generation-config-damaged": (
        lambda w: w.export_broken(lambda f: (f / "generation_config.json").write_text("{")),
        "generation_config.json is not valid JSON",
    ),
    "end-token-malformed": (
        lambda w: w.export_broken(lambda f: rejson(f / "generation_config.json", eos_token_id="</s>")),
        "has eos_token_id '</s>'",
    ),
    "image-settings-malformed": (
        lambda w: w.export_broken(lambda f: reprocessor(f, image_mean=[0.5])),
        "has settings that do not work (",
    ),
    # pruning
    "budget-missing": (lambda w: w.export(budget=None), "give either a budget (--budget 64) or explicit counts"),
    "budget-zero": (lambda w: w.export(budget="0"), "budget 0 is unreachable"),
    "budget-negative": (lambda w: w.export(budget="-5"), "budget -5 is unreachable"),
    "budget-above-n": (lambda w: w.export(budget="37"), "can be 1 to 36 for this model"),
    "budget-percent-above": (
        lambda w: w.export(budget="101%"),
        "budget 101% is unreachable: the average share of visual tokens per layer can be 2.778% to 100% (1 to 36 tokens)",
    ),
    "budget-percent-below-one-token": (lambda w: w.export(budget="2.7%"), "budget 2.7% is unreachable: the average share"),
    "budget-text": (lambda w: w.export(budget="many"), "budget 'many' is not a plain number"),
    "budget-nan": (lambda w: w.export(budget="nan"), "budget 'nan' is not a plain number"),
    "budget-huge-exponent": (lambda w: w.export(budget="1e999999999"), "is not a plain number"),
    "budget-and-keep": (lambda w: w.export("--keep", "9,3"), "give either a budget"),
    "keep-one-number": (lambda w: w.export("--keep", "9", budget=None), "--keep '9' is not two numbers"),
    "keep-three-numbers": (lambda w: w.export("--keep", "9,3,1", budget=None), "--keep '9,3,1' is not two numbers"),
    "keep-text": (lambda w: w.export("--keep", "9,x", budget=None), "--keep '9,x' is not two numbers"),
    "keep-above-n": (lambda w: w.export("--keep", "40,3", budget=None), "stage 1 cannot keep 40 of 36 visual tokens"),
    "keep-stage2-above-stage1": (lambda w: w.export("--keep", "9,10", budget=None), "stage 2 cannot keep 10 of the 9"),
    "keep-zero": (lambda w: w.export("--keep", "9,0", budget=None), "stage 2 cannot keep 0"),
    "method-unknown": (lambda w: w.export("--method", "fastw"), "unknown method 'fastw': choose one of sts, "),
    "method-keeps-all-before": (
        lambda w: w.export("--method", "fastv", "--keep", "12,4", budget=None),
        "stage 1 keep-all keeps all 36 visual tokens, so K = N: give --keep 36,K'",
    ),
    "method-keeps-too-much": (
        lambda w: w.export("--method", "dart", budget="12"),
        "budget 12 is unreachable: the average number of visual tokens per layer can be 18.50 to 36 for this model where",
    ),
    "method-keeps-all": (
        lambda w: w.export("--method", "none"),
        "method none prunes nothing: leave --budget out, or give 100%",
    ),
    "stage1-unknown": (lambda w: w.export("--stage1", "star"), "unknown stage 1 'star': choose one of "),
    "stage2-unknown": (lambda w: w.export("--stage2", "star"), "unknown stage 2 'star': choose one of "),
    "stage-malformed": (lambda w: w.export("--stage1", "repulsion:first"), "is not NAME or NAME:key=value,key=value"),
    "stage-setting-unknown": (
        lambda w: w.export("--stage2", "last-token:layer=3"),
        "last-token has no setting 'layer': choose one of score_layer",
    ),
    "stage-setting-value": (
        lambda w: w.export("--stage1", "repulsion:anchor=last"),
        "unknown anchor 'last': choose one of mean, first, saliency",
    ),
    "stage-setting-twice": (
        lambda w: w.export("--stage1", "repulsion:anchor=first", "--anchor", "mean"),
        "anchor is given with --stage1 and by itself: give it once",
    ),
    "stage-without-setting": (
        lambda w: w.export("--stage1", "keep-all", "--anchor", "first"),
        "anchor is a setting of stage 1 repulsion, not of keep-all: leave it out or choose --stage1 repulsion",
    ),
    "stage-of-another-method": (
        lambda w: w.export("--method", "sts", "--stage2", "keep-all"),
        "--stage2 keep-all is not that of method sts (last-token): leave --method or it out",
    ),
    "stage-that-keeps-all": (
        lambda w: w.export("--stage1", "keep-all", "--keep", "12,4", budget=None),
        "stage 1 keep-all keeps all 36 visual tokens, so K = N: give --keep 36,K'",
    ),
    "prune-layer-impossible": (lambda w: w.export("--prune-layer", "2"), "prune layer 2 is impossible"),
    "epsilon-zero": (lambda w: w.export("--epsilon", "0"), "epsilon must be a finite number of at least 1e-12"),
    # output
    "output-exists": (lambda w: [*w.export(), "--output", str(w.copy("bundle"))], "exists; choose another --output"),
    "output-foreign-with-force": (
        lambda w: [*w.export("--force"), "--output", str(w.copy("checkpoint"))],
        "is not a bundle, so --force does not replace it",
    ),
    "output-below-a-file": (
        lambda w: [*w.export(), "--output", w.write("file", b"") + "/bundle"],
        "choose another --output",
    ),
    "output-name-too-long": (lambda w: [*w.export(), "--output", "x" * 300], "cannot be used (File name too long)"),
    "capacity-zero": (lambda w: w.export("--max-new-tokens", "0"), "must be at least 1"),
    "capacity-below-the-template": (
        lambda w: w.export("--max-prompt-tokens=3", "--max-new-tokens=3"),
        "no prompt fits: the chat template alone takes ",
    ),
    "capacity-leaves-too-little": (
        lambda w: w.export("--max-prompt-tokens", "2010"),
        "2010 prompt + 18 visual + at least 32 new tokens exceed 2048 positions",
    ),
    "capacity-beyond-positions": (lambda w: w.export("--max-prompt-tokens", "3000"), "exceed 2048 positions"),
    "visual-tokens-zero": (lambda w: w.export("--max-visual-tokens", "0"), "--max-visual-tokens 0 must be at least 1"),
    "visual-tokens-text": (lambda w: w.export("--max-visual-tokens", "x"), "--max-visual-tokens: invalid int value: 'x'"),
    "visual-tokens-beyond-positions": (
        lambda w: w.export("--max-visual-tokens", "5000"),
        "lower --max-prompt-tokens, --max-new-tokens, --max-visual-tokens or the budget",
    ),
    "visual-tokens-huge": (lambda w: w.export("--max-visual-tokens", "1" + "0" * 12), "positions; lower --max-prompt-tokens"),
    "dtype-unknown": (
        lambda w: w.export("--dtype=fp8"),
        "unknown dtype 'fp8': choose one of float32, float16, bfloat16, or fp32, fp16, bf16",
    ),
    "quantize-with-dtype": (
        lambda w: w.export("--quantize=int8", "--dtype=fp16"),
        "--quantize computes in float32: leave out --dtype fp16",
    ),
    "link-with-conversion": (lambda w: w.export("--weights=link", "--dtype=float16"), "--weights link cannot convert"),
    # bundle
    "bundle-missing": (lambda w: w.run(bundle=str(w.folder / "none")), "none does not exist; check the path, or make one"),
    "bundle-is-a-checkpoint": (
        lambda w: w.run(bundle=str(w.origin / "checkpoint")),
        "is a checkpoint, not a bundle; make one of it",
    ),
    "bundle-unknown-user": (lambda w: w.run(bundle="~no-such-user/x"), "cannot be used"),
    "bundle-file-missing": (lambda w: w.run_broken(lambda f: (f / "selector.onnx").unlink()), "selector.onnx is missing"),
    "bundle-file-altered": (lambda w: w.run_broken(lambda f: shorten(f / "tokenizer.json")), "tokenizer.json was altered"),
    "bundle-weights-missing": (
        lambda w: w.run_broken(lambda f: (f / "weights.safetensors").unlink()),
        "weights.safetensors is missing",
    ),
    "bundle-newer-schema": (
        lambda w: w.run_broken(lambda f: rejson(f / "manifest.json", schema_version=4)),
        "has manifest schema 4, this sts-export reads up to 3; upgrade",
    ),
    "bundle-older-schema": (
        lambda w: w.run_broken(lambda f: rejson(f / "manifest.json", schema_version=1)),
        "was written by an older sts-export (manifest schema 1); export it again",
    ),
    "bundle-manifest-damaged": (
        lambda w: w.run_broken(lambda f: (f / "manifest.json").write_text("{")),
        "manifest.json is damaged",
    ),
    # the other commands
    "inspect-no-bundle": (lambda w: ["inspect", str(w.folder)], "is not a bundle"),
    "show-no-picture-name": (
        lambda w: ["show", w.bundle, "--image", w.picture, "--prompt", "x", "-o", str(w.folder / "kept.txt")],
        "use a name that ends in .png, .jpg, .webp or .html",
    ),
    "show-no-folder": (
        lambda w: ["show", w.bundle, "--image", w.picture, "--prompt", "x", "-o", str(w.folder / "none" / "kept.png")],
        "is not a folder; choose another --output",
    ),
    "show-second-image-missing": (
        lambda w: [*w.show(), "--image", "none.png"],
        "image 'none.png' does not exist",
    ),
    "show-over-a-picture": (
        lambda w: [*w.show(output=w.picture)],
        "picture.png is the picture itself; choose another --output",
    ),
    "show-no-bundle": (
        lambda w: ["show", "--image", w.picture, "--prompt", "x", "-o", str(w.folder / "kept.png")],
        "the following arguments are required: BUNDLE",
    ),
    "show-a-bundle-twice": (
        lambda w: [*w.show()[:2], w.bundle, *w.show()[2:]],
        "is given twice, which draws the same twice: give it once",
    ),
    "show-a-budget-twice": (
        lambda w: w.show("--budget", "8", "--budget", "8.0"),
        "budget 8.0 is given twice, which draws the same twice: give it once",
    ),
    "show-budget-no-number": (lambda w: w.show("--budget", "few"), "budget 'few' is not a plain number"),
    "show-no-image": (
        lambda w: ["show", w.bundle, "--image", "none.png", "--prompt", "x", "-o", str(w.folder / "kept.png")],
        "does not exist",
    ),
    "verify-no-pairs": (lambda w: ["verify", w.bundle, "--pairs", "0"], "--pairs must be at least 1"),
    "verify-no-tokens": (lambda w: ["verify", w.bundle, "--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
    "verify-checkpoint-gone": (lambda w: ["verify", w.bundle, "--checkpoint", "gone"], "unknown model 'gone'"),
    "verify-other-checkpoint": (
        lambda w: ["verify", w.bundle, "--checkpoint", str(write_random_llava(w.folder / "other"))],
        "is not the checkpoint this bundle was made from",
    ),
    "verify-budget": (lambda w: ["verify", w.bundle, "--budget", "13"], "budget 13 is unreachable: with this bundle"),
    "bench-keep": (lambda w: ["bench", w.bundle, "--keep", "9"], "--keep '9' is not two numbers"),
    "bench-no-repeats": (lambda w: ["bench", w.bundle, "--repeats", "0"], "needs at least 1 repeat and 2 new tokens"),
    "bench-no-tokens": (lambda w: ["bench", w.bundle, "--max-new-tokens", "0"], "needs at least 1 repeat and 2 new tokens"),
}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("arguments", "expected"), ERRORS.values(), ids=ERRORS.keys())
def test_wrong_requests(
    work: Work, capsys: pytest.CaptureFixture[str], arguments: Callable[[Work], list[str]], expected: str
) -> None:
    check_refused(work, capsys, arguments, expected)
