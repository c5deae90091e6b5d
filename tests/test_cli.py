"""The command line: every wrong request is one line and exit code 2, and leaves nothing behind; JSON has what it should."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sts_export.bundle import record_file
from sts_export.cli import COMMANDS, main
from sts_export.exporter import ExportRequest, export
from tests.checkpoints import RandomLlava, random_image, write_random_llava

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoint/, bundle/ and picture.png, which no test may change."""
    folder: Path = tmp_path_factory.mktemp("origin")
    write_random_llava(folder / "checkpoint", RandomLlava(layers=2, vision_layers=2))
    export(ExportRequest(str(folder / "checkpoint"), folder / "bundle", budget="12", max_prompt_tokens=60, max_new_tokens=20))
    random_image(0).save(folder / "picture.png")
    return folder


class Work:
    """A folder for one test, with copies of what it wants to break."""

    def __init__(self, origin: Path, folder: Path) -> None:
        self.origin = origin
        self.folder = folder
        self.picture = str(origin / "picture.png")
        self.bundle = str(origin / "bundle")
        self.output = str(folder / "new" / "output")

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.origin / name, self.folder / name))

    def write(self, name: str, content: bytes) -> str:
        (self.folder / name).write_bytes(content)
        return str(self.folder / name)

    def export(self, *arguments: str, model: str | Path | None = None, budget: str | None = "12") -> list[str]:
        amount = [] if budget is None else [f"--budget={budget}"]
        return ["--model", str(model or self.origin / "checkpoint"), *amount, "--output", self.output, *arguments]

    def export_broken(self, change: Callable[[Path], object]) -> list[str]:
        change(checkpoint := self.copy("checkpoint"))
        return self.export(model=checkpoint)

    def run(
        self, *arguments: str, image: str | None = None, prompt: str = "What is it?", bundle: str | None = None
    ) -> list[str]:
        return ["run", bundle or self.bundle, "--prompt", prompt, "--image", image or self.picture, *arguments]

    def run_broken(self, change: Callable[[Path], object]) -> list[str]:
        change(bundle := self.copy("bundle"))
        return self.run(bundle=str(bundle))


@pytest.fixture
def work(origin: Path, tmp_path: Path) -> Work:
    return Work(origin, tmp_path)


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def retensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def rejson(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def shard_missing(folder: Path) -> None:
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    weight_map = dict.fromkeys(names, "a.safetensors") | {"language_model.lm_head.weight": "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a huge picture and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")


def animation(work: Work) -> str:
    frames = [random_image(seed, (20, 20)) for seed in range(3)]
    file = work.folder / "moving.gif"
    frames[0].save(file, save_all=True, append_images=frames[1:])
    return str(file)


NORM = "language_model.model.layers.1.input_layernorm.weight"
KEY = "language_model.model.layers.0.self_attn.k_proj.weight"

# id: (what is typed, what the line must say)
ERRORS: dict[str, tuple[Callable[[Work], list[str]], str]] = {
    # the command line itself
    "nothing-given": (lambda w: [], "required: --model"),
    "unknown-command": (lambda w: ["evaluate", w.bundle], "unknown command 'evaluate': choose one of export, run,"),
    "unknown-option": (lambda w: w.export("--turbo"), "unrecognized arguments: --turbo"),
    "missing-value": (lambda w: ["--model"], "argument --model: expected one argument"),
    "no-bundle": (lambda w: ["run", "--prompt", "x"], "required: BUNDLE"),
    "no-prompt": (lambda w: ["run", w.bundle], "required: --prompt"),
    "not-a-number": (lambda w: w.export("--prune-layer", "two"), "--prune-layer: invalid int value: 'two'"),
    "unknown-choice": (lambda w: w.export("--anchor", "last"), "--anchor: invalid choice: 'last'"),
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
        lambda w: w.export_broken(lambda f: rejson(f / "config.json", model_type="qwen2_5_vl")),
        "unsupported architecture 'qwen2_5_vl' in config.json; supported model types: llava",
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
    # pruning
    "budget-missing": (lambda w: w.export(budget=None), "give either a budget (--budget 64) or explicit counts"),
    "budget-zero": (lambda w: w.export(budget="0"), "budget 0 is unreachable"),
    "budget-negative": (lambda w: w.export(budget="-5"), "budget -5 is unreachable"),
    "budget-above-n": (lambda w: w.export(budget="37"), "can be 1 to 36 for this model"),
    "budget-percent-above": (lambda w: w.export(budget="101%"), "is unreachable"),
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
    "method-unknown": (lambda w: w.export("--method", "fastv"), "unknown method 'fastv': choose one of sts, sts-s"),
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
    "capacity-beyond-positions": (lambda w: w.export("--max-prompt-tokens", "3000"), "exceed 2048 positions"),
    "link-with-conversion": (lambda w: w.export("--weights=link", "--dtype=float16"), "--weights link cannot convert"),
    # picture
    "image-missing": (lambda w: w.run(image="none.png"), "image 'none.png' does not exist"),
    "image-is-folder": (lambda w: w.run(image=str(w.folder)), "is a folder"),
    "image-empty": (lambda w: w.run(image=w.write("a.png", b"")), "is empty (0 bytes)"),
    "image-truncated": (
        lambda w: w.run(image=w.write("a.png", Path(w.picture).read_bytes()[:2000])),
        "is truncated or damaged",
    ),
    "image-not-an-image": (lambda w: w.run(image=w.write("a.png", b"just text")), "is not an image that can be read"),
    "image-animated": (lambda w: w.run(image=animation(w)), "is animated or has several pages"),
    "image-huge": (lambda w: w.run(image=w.write("a.png", png_header(9000, 9000))), "more than the 64000000 accepted"),
    "image-bomb": (lambda w: w.run(image=w.write("a.png", png_header(60000, 60000))), "make it smaller"),
    "image-strip": (lambda w: w.run(image=w.write("a.png", png_header(30000, 2))), "is a strip of 30000 x 2 pixels"),
    "image-url": (lambda w: w.run(image="https://example.org/cat.jpg"), "is a URL; download it"),
    # prompt and generation
    "prompt-empty": (lambda w: w.run(prompt="  "), "the prompt is empty"),
    "prompt-more-placeholders": (lambda w: w.run(prompt="<image> or <image>?"), "2 <image> placeholder(s) but 1 image(s)"),
    "prompt-placeholder-no-image": (
        lambda w: ["run", w.bundle, "--prompt", "<image> What?"],
        "1 <image> placeholder(s) but 0 image(s)",
    ),
    "prompt-too-long": (lambda w: w.run(prompt="table " * 300), "the prompt is too long"),
    "new-tokens-zero": (lambda w: w.run("--max-new-tokens", "0"), "max_new_tokens must be at least 1"),
    "new-tokens-too-many": (lambda w: w.run("--max-new-tokens", "5000"), "5000 new tokens do not fit"),
    "temperature-negative": (lambda w: w.run("--temperature=-1"), "temperature must be"),
    "temperature-nan": (lambda w: w.run("--temperature", "nan"), "temperature must be"),
    "top-p-above-one": (lambda w: w.run("--top-p", "1.5"), "top_p must be"),
    "top-k-negative": (lambda w: w.run("--top-k=-1"), "top_k must be"),
    "seed-negative": (lambda w: w.run("--seed=-1"), "seed must be"),
    "stop-empty": (lambda w: w.run("--stop", ""), "a stop string must be non-empty"),
    "threads-zero": (lambda w: w.run("--threads", "0"), "threads must be at least 1"),
    # bundle
    "bundle-missing": (lambda w: w.run(bundle=str(w.folder / "none")), "is not a bundle: it has no manifest.json"),
    "bundle-is-a-checkpoint": (lambda w: w.run(bundle=str(w.origin / "checkpoint")), "is not a bundle"),
    "bundle-unknown-user": (lambda w: w.run(bundle="~no-such-user/x"), "cannot be used"),
    "bundle-file-missing": (lambda w: w.run_broken(lambda f: (f / "selector.onnx").unlink()), "selector.onnx is missing"),
    "bundle-file-altered": (lambda w: w.run_broken(lambda f: shorten(f / "tokenizer.json")), "tokenizer.json was altered"),
    "bundle-weights-missing": (
        lambda w: w.run_broken(lambda f: (f / "weights.safetensors").unlink()),
        "weights.safetensors is missing",
    ),
    "bundle-newer-schema": (
        lambda w: w.run_broken(lambda f: rejson(f / "manifest.json", schema_version=2)),
        "has manifest schema 2, this sts-export reads up to 1; upgrade",
    ),
    "bundle-manifest-damaged": (
        lambda w: w.run_broken(lambda f: (f / "manifest.json").write_text("{")),
        "manifest.json is damaged",
    ),
    # the other commands
    "inspect-no-bundle": (lambda w: ["inspect", str(w.folder)], "is not a bundle"),
    "show-no-picture-name": (
        lambda w: ["show", w.bundle, "--image", w.picture, "--prompt", "x", "-o", str(w.folder / "kept.txt")],
        "use a name that ends in .png, .jpg or .webp",
    ),
    "show-no-folder": (
        lambda w: ["show", w.bundle, "--image", w.picture, "--prompt", "x", "-o", str(w.folder / "none" / "kept.png")],
        "is not a folder; choose another --output",
    ),
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
    "bench-no-repeats": (lambda w: ["bench", w.bundle, "--repeats", "0"], "needs at least 1 repeat and 2 new tokens"),
    "bench-no-tokens": (lambda w: ["bench", w.bundle, "--max-new-tokens", "0"], "needs at least 1 repeat and 2 new tokens"),
}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As HF_HUB_OFFLINE=1 with an empty cache; whoever asks the network fails the test."""
    import socket

    import huggingface_hub.constants

    def no_network(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"asked the network: {args}")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What main printed: nothing but one line on stderr."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("sts-export: ") and printed.err.endswith("\n")
    assert printed.err.count("\n") == 1
    assert len(printed.err) < 900
    return printed.err.removeprefix("sts-export: ").rstrip("\n")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("arguments", "expected"), ERRORS.values(), ids=ERRORS.keys())
def test_wrong_requests(
    work: Work, capsys: pytest.CaptureFixture[str], arguments: Callable[[Work], list[str]], expected: str
) -> None:
    argv = arguments(work)
    capsys.readouterr()
    before = tree(work.folder), tree(work.origin)
    assert main(argv) == 2
    line = error_line(capsys)
    assert expected in line
    assert "Traceback" not in line
    assert (tree(work.folder), tree(work.origin)) == before


def test_no_disk_space(work: Work, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("usage", (), {"free": 1000}))
    assert main(work.export()) == 2
    assert "no room for the weights" in error_line(capsys)
    assert tree(work.folder) == set()


def test_interrupt(work: Work, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("sts_export.exporter.write_manifest", interrupt)
    assert main(work.export()) == 130
    assert error_line(capsys) == "interrupted"
    assert tree(work.folder) == set()


def test_an_engine_failure_is_exit_code_1(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """A bfloat16 bundle is a right request for another engine; this one cannot run it."""
    assert main(work.export("--dtype=bfloat16")) == 0
    capsys.readouterr()
    assert main(work.run(bundle=work.output)) == 1
    assert "cannot run bfloat16; export again with --dtype float32" in error_line(capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "usage: sts-export" in capsys.readouterr().out


def test_export_prints_one_line(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(work.export("--weights", "link")) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out == (
        f"{work.output}: 36 visual tokens -> 18 before the LLM -> 6 after layer 1 of 2 (average 12); "
        "KV rows 1042 lower, 1030 upper\n"
    )
    assert tree(work.folder) == {"new", "new/output", *(f"new/output/{name}" for name in tree(Path(work.output)))}
    assert main(["export", *work.export("--force", budget="8")]) == 0


def test_run_json_has_every_field(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(work.run("--json", "--max-new-tokens", "5")) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    result = json.loads(printed.out)
    number = (int, float)
    expected: dict[str, Any] = {
        "text": str,
        "token_ids": list,
        "finish_reason": str,
        "prompt_tokens": int,
        "visual_tokens": {"total": int, "stage1": int, "stage2": int},
        "kept_stage1": list,
        "kept_stage2": list,
        "timings_ms": dict.fromkeys(
            ("preprocess", "vision", "select", "prefill_lower", "prefill_upper", "first_token", "decode_per_token"), number
        ),
        "kv_cache_bytes": {"lower": int, "upper": int},
    }
    assert result.keys() == expected.keys()
    for name, kind in expected.items():
        if isinstance(kind, dict):
            assert result[name].keys() == kind.keys()
            assert all(isinstance(result[name][key], inner) for key, inner in kind.items())
        else:
            assert isinstance(result[name], kind)
    assert result["finish_reason"] in ("stop", "length")
    assert 1 <= len(result["token_ids"]) <= 5
    assert all(isinstance(token, int) for token in result["token_ids"])
    assert result["visual_tokens"] == {"total": 36, "stage1": 18, "stage2": 6}
    (first,), second = result["kept_stage1"], result["kept_stage2"]
    assert len(first) == 18 and first == sorted(set(first)) and set(first) <= set(range(36))
    assert len(second) == 6 and second == sorted(set(second)) and set(second) <= set(first)
    # 1 layer each, keys and values, 2 KV heads of 16, float32; 60 + 20 rows and what each stage keeps.
    assert result["kv_cache_bytes"] == {"lower": 2 * 2 * 16 * 4 * (80 + 18), "upper": 2 * 2 * 16 * 4 * (80 + 6)}
    assert all(value >= 0 for value in result["timings_ms"].values())


def test_run_streams_the_same_text(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(work.run("--json", "--max-new-tokens", "5")) == 0
    result = json.loads(capsys.readouterr().out)
    assert main(work.run("--max-new-tokens", "5")) == 0
    assert capsys.readouterr().out == result["text"] + "\n"


def test_run_without_a_picture(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", work.bundle, "--prompt", "What is it?", "--json", "--max-new-tokens", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["visual_tokens"] == {"total": 0, "stage1": 0, "stage2": 0}
    assert (result["kept_stage1"], result["kept_stage2"]) == ([], [])
    assert result["timings_ms"]["decode_per_token"] is None


def test_inspect(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", work.bundle]) == 0
    text = capsys.readouterr().out
    for expected in ("sts: K = 18, K' = 6 after layer 1", "12 visual tokens per decoder layer", "60 prompt + 20 new tokens"):
        assert expected in text
    assert main(["inspect", work.bundle, "--json", "--check"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((Path(work.bundle) / "manifest.json").read_text())


def test_inspect_check_reads_every_file(
    work: Work, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = work.copy("bundle")
    content = bytearray((bundle / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (bundle / "weights.safetensors").write_bytes(content)
    monkeypatch.setattr("sts_export.bundle._HASH_ON_LOAD", 300_000)  # as if it were a large file
    assert main(["inspect", str(bundle)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(bundle), "--check"]) == 2
    assert "weights.safetensors was altered: its sha256 differs" in error_line(capsys)


def test_show_writes_a_picture(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    output = work.folder / "kept.png"
    argv = ["show", work.bundle, "--image", work.picture, "--prompt", "What is it?", "-o", str(output)]
    assert main([*argv, "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out.startswith(f"{output}: 36 -> 18 -> 6 visual tokens; answer:")
    with Image.open(output) as picture:
        assert picture.size == (168, 168)  # 84 pixels, doubled
        pixels = picture.convert("RGB")
        frames = sum(pixels.getpixel((28 * x, 28 * y)) == (255, 210, 0) for x in range(6) for y in range(6))
    assert frames == 6
    assert tree(work.folder) == {"kept.png"}


VERIFY = ["--pairs", "1", "--max-new-tokens", "3"]


def test_verify_passes(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", work.bundle, *VERIFY]) == 0
    assert "passed: 1 pairs in float32" in capsys.readouterr().out
    assert main(["verify", work.bundle, *VERIFY, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True and report["dtype"] == "float32"
    (pair,) = report["pairs"]
    assert pair["stage1_equal"] and pair["stage2_equal"] and pair["tokens_equal"]
    assert 0 <= pair["logits_error"] < 1e-3 == report["tolerance"]


def alter_a_weight(bundle: Path) -> None:
    """One exponent bit of one weight of the head; the hash in the manifest follows."""
    file = bundle / "weights.safetensors"
    from sts_export.safetensors_header import read_header

    entry = read_header(file)[0]["language_model.lm_head.weight"]
    content = bytearray(file.read_bytes())
    content[entry.offset + 3] ^= 0x08  # sign and exponent of the first float: 2**16 times as large, or as small
    content[entry.offset + 2] ^= 0x80
    file.write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["weights"]["files"][0]["sha256"] = record_file(file).sha256
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def alter_the_graph(bundle: Path) -> None:
    """The selection takes another token first; the hash in the manifest follows."""
    other = bundle.with_name("other")
    export(
        ExportRequest(
            str(bundle.parent / "checkpoint"),
            other,
            budget="12",
            max_prompt_tokens=60,
            max_new_tokens=20,
            choices={"anchor": "first"},
        )
    )
    shutil.copy(other / "selector.onnx", bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    record = record_file(bundle / "selector.onnx")
    manifest["graphs"]["selector"].update(size=record.size, sha256=record.sha256)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("alter", [alter_a_weight, alter_the_graph])
def test_verify_notices_what_hashes_do_not(
    work: Work, capsys: pytest.CaptureFixture[str], alter: Callable[[Path], None]
) -> None:
    work.copy("checkpoint")
    bundle = work.copy("bundle")
    alter(bundle)
    assert main(["inspect", str(bundle), "--check"]) == 0
    capsys.readouterr()
    assert main(["verify", str(bundle), *VERIFY, "--image", work.picture]) == 1
    printed = capsys.readouterr()
    assert "FAILED: 1 pairs" in printed.out and printed.err == ""


# --- processes -------------------------------------------------------------------------------------------------------


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sts_export.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


def test_bench_json(work: Work) -> None:
    result = process("bench", work.bundle, "--against", work.bundle, "--repeats=2", "--max-new-tokens=3", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    reports = json.loads(result.stdout)
    assert len(reports) == 2
    for report in reports:
        metrics = {"first_token_ms", "decode_ms_per_token", "selection_ms"}
        assert report.keys() == {"name", "load_s", "peak_rss_mb", "values", *metrics}
        assert report["name"] == work.bundle
        assert report["values"].keys() == metrics
        for metric in metrics:
            values = report["values"][metric]
            assert len(values) == 2 and all(value > 0 for value in values)
            assert report[metric] == pytest.approx(sum(values) / 2)
        assert report["load_s"] > 0 and report["peak_rss_mb"] > 10


def test_errors_of_a_bench_process_are_one_line(work: Work) -> None:
    result = process("bench", work.bundle, "--image", "none.png", "--repeats=1")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "sts-export: image 'none.png' does not exist; check the path\n"


def test_offline_by_environment(work: Work) -> None:
    result = process(*work.export(model="org/name"), HF_HUB_OFFLINE="1", HF_HOME=str(work.folder / "cache"))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1 and "org/name is not in the local cache" in result.stderr
    assert not (work.folder / "new").exists()


def test_a_reader_that_leaves_early(work: Work) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        command = [sys.executable, "-m", "sts_export.cli", "inspect", work.bundle, "--json"]
        result = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (1, "")


_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails, looking for it finds nothing
sys.modules["torchvision"] = None
import sts_export
from sts_export.cli import main
for argv in sys.argv[1:]:
    try:
        code = main(argv.split("\\t"))
    except SystemExit as end:
        code = end.code
    assert code == 0, (argv, code)
assert sys.modules["torch"] is None
"""


def test_everything_but_verify_works_without_torch(work: Work) -> None:
    commands = [
        ["--help"],
        work.export(),
        work.run("--max-new-tokens", "2", "--json", bundle=work.output),
        ["inspect", work.output],
        ["show", work.output, "--image", work.picture, "--prompt", "What?", "-o", str(work.folder / "k.png")],
    ]
    command = [sys.executable, "-c", _WITHOUT_TORCH, *("\t".join(argv) for argv in commands)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_importing_the_package_and_exporting_load_no_torch(work: Work) -> None:
    """Although it is installed here."""
    code = (
        "import sys, sts_export; from sts_export.cli import main; assert main(sys.argv[1:]) == 0; "
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    result = subprocess.run([sys.executable, "-c", code, *work.export()], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_verify_without_torch_says_what_to_install(work: Work) -> None:
    code = "import sys; sys.modules['torch'] = None; from sts_export.cli import main; sys.exit(main(sys.argv[1:]))"
    result = subprocess.run([sys.executable, "-c", code, "verify", work.bundle], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "sts-export: verify needs PyTorch: pip install 'sts-export[reference]'\n"
