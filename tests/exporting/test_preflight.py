"""What could never be run is not exported: whatever the runtime would refuse in a bundle is refused in the checkpoint."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sts_export import Pipeline
from sts_export.checkpoints.checkpoint import image_processor_settings
from sts_export.errors import BundleError, CheckpointError, RequestError, StsExportError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    random_image,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)
from tests.exporting.helpers import files

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 100\n"
WRITERS: dict[str, Callable[[Path], Path]] = {
    "llava": lambda folder: write_random_llava(folder, RandomLlava(layers=2, vision_layers=2)),
    "llava_next": lambda folder: write_random_llava_next(folder, RandomLlavaNext(layers=2, vision_layers=2, layout="4.x")),
    "qwen2_5_vl": lambda folder: write_random_qwen2_5_vl(folder, RandomQwen25VL(layers=2)),
}
IMAGE_TOKENS = {"llava": "<image>", "llava_next": "<image>", "qwen2_5_vl": "<|image_pad|>"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every family NAME a checkpoint NAME and its bundle NAME-b."""
    folder: Path = tmp_path_factory.mktemp("made")
    for name, write in WRITERS.items():
        export(ExportRequest(str(write(folder / name)), folder / f"{name}-b", budget="20%", weights="link"))
    return folder


def template_file(folder: Path) -> Path:
    """Whichever the checkpoint has."""
    return next(file for file in (folder / "chat_template.json", folder / "chat_template.jinja") if file.exists())


def template_is(text: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = template_file(folder)
        file.write_text(json.dumps({"chat_template": text}) if file.suffix == ".json" else text)

    return change


def file_is(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def processor_has(**changes: Any) -> Callable[[Path], object]:
    """Other settings of the image processor, in the file that holds them."""

    def change(folder: Path) -> None:
        settings, file = image_processor_settings(folder)
        content = json.loads(file.read_text())
        new = {**settings, **changes}
        file.write_text(json.dumps({**content, "image_processor": new} if "image_processor" in content else new))

    return change


def rename_image_token(folder: Path) -> None:
    """The vocabulary calls it otherwise; the id that config.json names is another token's."""
    file, token = folder / "tokenizer.json", IMAGE_TOKENS[json.loads((folder / "config.json").read_text())["model_type"]]
    text = file.read_text(encoding="utf-8")
    assert token in text
    file.write_text(text.replace(token, token.replace("i", "j")), encoding="utf-8")


ONLY_TEXT = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}"
)
NO_IMAGES = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ raise_exception('no; pictures') }}{% endif %}{{ part['text'] }}{% endfor %}{% endfor %}"
)
# id: (what is done to the folder, what the line must say)
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "tokenizer-cut": (cut("tokenizer.json"), "cannot open the tokenizer"),
    "tokenizer-empty": (file_is("tokenizer.json", ""), "cannot open the tokenizer"),
    "tokenizer-pointer": (file_is("tokenizer.json", POINTER), "tokenizer.json is a git-lfs pointer"),
    "tokenizer-config-cut": (cut("tokenizer_config.json"), "cannot open the tokenizer"),
    "tokenizer-config-pointer": (file_is("tokenizer_config.json", POINTER), "tokenizer_config.json is a git-lfs pointer"),
    "image-token-missing": (rename_image_token, "use the tokenizer that belongs to the model"),
    "template-syntax": (template_is("{% for %}"), "the chat template in"),
    "template-render": (template_is("{{ messages.nothing.at.all }}"), "the chat template in"),
    "template-without-prompt": (template_is("Hello"), "leaves out the prompt"),
    "template-without-images": (template_is(ONLY_TEXT), "the prompt has 0 "),
    "template-refuses-images": (template_is(NO_IMAGES), "the model's chat template refuses these messages: no"),
    "template-pointer": (lambda folder: template_file(folder).write_text(POINTER), "is a git-lfs pointer"),
    "template-json-damaged": (file_is("chat_template.json", "{"), "chat_template.json is not valid JSON"),
    "generation-damaged": (file_is("generation_config.json", "{"), "generation_config.json is not valid JSON"),
    "generation-list": (file_is("generation_config.json", "[]"), "generation_config.json is not a JSON object"),
    "generation-pointer": (file_is("generation_config.json", POINTER), "generation_config.json is a git-lfs pointer"),
    "end-token-text": (file_is("generation_config.json", '{"eos_token_id": "</s>"}'), "eos_token_id '</s>'"),
    "end-token-fraction": (file_is("generation_config.json", '{"eos_token_id": [2, 1.5]}'), "eos_token_id [2, 1.5]"),
    "penalty-negative": (file_is("generation_config.json", '{"repetition_penalty": -1}'), "repetition_penalty"),
    "mean-of-two": (processor_has(image_mean=[0.5, 0.5]), "has settings that do not work"),
    "std-zero": (processor_has(image_std=[0, 0, 0]), "makes unusable pixel_values"),
    "std-of-four": (processor_has(image_std=[0.5] * 4), "has settings that do not work"),
    "resample-unknown": (processor_has(resample=99), "has settings that do not work"),
    "rescale-text": (processor_has(rescale_factor="x"), "has settings that do not work"),
    "size-text": (processor_has(size="large"), ""),  # one family says more than the others
    "processor-unknown": (processor_has(image_processor_type="OtherImageProcessor"), "asks for "),
    "processor-config-damaged": (file_is("processor_config.json", "{"), "processor_config.json is not valid JSON"),
    "processor-config-pointer": (file_is("processor_config.json", POINTER), "processor_config.json is a git-lfs pointer"),
}
OF_ONE_FAMILY: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "size-keys": ("llava", processor_has(size={"wrong": 3}), "settings do not work"),
    "not-square": (
        "llava",
        processor_has(do_center_crop=False),
        "makes unusable pixel_values of shape [1, 3, 84, 112]",
    ),
    "tilings-fewer": ("llava_next", processor_has(image_grid_pinpoints=[[84, 168], [168, 84]]), "has image_grid_pinpoints"),
    "tilings-order": (
        "llava_next",
        processor_has(image_grid_pinpoints=[[168, 84], [84, 168], [168, 168], [252, 84], [84, 252]]),
        "use the processor files of this model",
    ),
    "tiles-cut-smaller": (
        "llava_next",
        processor_has(size={"height": 84, "width": 84}, do_center_crop=False, crop_size={"height": 42, "width": 42}),
        "crops of a picture that config.json's image_grid_pinpoints cut into",
    ),
    "pictures-not-resized": ("qwen2_5_vl", processor_has(do_resize=False), "does not limit pixels"),
}
CASES = {
    **{f"{family}-{name}": (family, *damage) for name, damage in DAMAGES.items() for family in WRITERS},
    **{f"{case[0]}-{name}": case for name, case in OF_ONE_FAMILY.items()},
}


def refused(request: ExportRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The line; nothing of the weights was touched, nor a folder made."""

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the export went on")

    for name in ("build", "match_weights", "staging", "copy_weights", "link_weights"):
        monkeypatch.setattr(f"sts_export.exporting.exporter.{name}", never)
    with pytest.raises(CheckpointError) as caught:
        export(request)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    return str(caught.value)


def ask(bundle: Path) -> None:
    """As `run` does."""
    with Pipeline(bundle, threads=1) as vlm:
        vlm.generate("What?", random_image(0, (300, 200)), max_new_tokens=1)


def record_again(bundle: Path) -> None:
    """A manifest that agrees with what is in the folder now."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    for record in manifest["companions"]:
        content = (bundle / record["file"]).read_bytes()
        record |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(("family", "damage", "expected"), CASES.values(), ids=CASES.keys())
def test_what_never_runs_is_not_exported(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, damage: Callable[[Path], object], expected: str
) -> None:
    source = Path(shutil.copytree(made / family, tmp_path / "source"))
    damage(source)
    before = files(tmp_path)
    assert expected in refused(ExportRequest(str(source), tmp_path / "new" / "bundle", budget="20%"), monkeypatch)
    assert files(tmp_path) == before


@pytest.mark.parametrize(("family", "damage", "expected"), CASES.values(), ids=CASES.keys())
def test_it_never_runs(made: Path, tmp_path: Path, family: str, damage: Callable[[Path], object], expected: str) -> None:
    """The same done to a bundle: the runtime refuses it, or no picture can be asked about."""
    bundle = Path(shutil.copytree(made / f"{family}-b", tmp_path / "bundle"))
    damage(bundle)
    record_again(bundle)
    with pytest.raises(StsExportError) as caught:
        ask(bundle)
    assert not isinstance(caught.value, BundleError)  # the files are as recorded


@pytest.mark.parametrize("family", WRITERS)
def test_undamaged_they_run(made: Path, family: str) -> None:
    ask(made / f"{family}-b")


@pytest.mark.parametrize("family", WRITERS)
def test_another_models_image_token_is_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    source = Path(shutil.copytree(made / family, tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    config["image_token_id" if family == "qwen2_5_vl" else "image_token_index"] = 9
    (source / "config.json").write_text(json.dumps(config))
    line = refused(ExportRequest(str(source), tmp_path / "bundle", budget="20%"), monkeypatch)
    assert "makes 0 tokens with id 9 of " in line and "use the tokenizer that belongs to the model" in line


def test_the_settings_that_are_written_are_tried(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures so small that only those of other settings would fit."""
    opened: list[Any] = []
    from transformers import Qwen2VLImageProcessorPil

    original = Qwen2VLImageProcessorPil.from_dict

    def from_dict(settings: dict[str, Any]) -> Any:
        opened.append(settings)
        return original(settings)

    monkeypatch.setattr(Qwen2VLImageProcessorPil, "from_dict", from_dict)
    bundle = export(ExportRequest(str(made / "qwen2_5_vl"), tmp_path / "b", budget="20%", max_visual_tokens=40)).folder
    assert opened[-1] == image_processor_settings(bundle)[0] != image_processor_settings(made / "qwen2_5_vl")[0]


# Room


def long_template(source: Path, words: int) -> None:
    """A system prompt of so many words before everything."""
    file = source / "chat_template.jinja"
    file.write_text("table " * words + file.read_text())


def test_a_template_that_leaves_no_room(made: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(made / "llava", tmp_path / "source"))
    long_template(source, 100)
    before = files(tmp_path)
    sizes: dict[str, Any] = {"budget": "20%", "max_new_tokens": 10}
    with pytest.raises(
        RequestError, match=r"^no prompt fits: the chat template alone takes \d+ tokens with one image"
    ) as caught:
        export(ExportRequest(str(source), tmp_path / "bundle", max_prompt_tokens=60, **sizes))
    assert files(tmp_path) == before and "\n" not in str(caught.value)
    least = int(str(caught.value).split("--max-prompt-tokens ")[1].split()[0])
    assert least > 100
    notes: list[str] = []
    bundle = export(ExportRequest(str(source), tmp_path / "bundle", max_prompt_tokens=least, **sizes), note=notes.append)
    assert notes == []
    with Pipeline(bundle.folder, threads=1) as vlm:
        answer = vlm.generate("a", random_image(0), ignore_eos=True)
    assert len(answer.token_ids) == 10


def test_a_template_at_the_expense_of_the_answer(made: Path, tmp_path: Path) -> None:
    """Allowed, since it runs, and said."""
    source = Path(shutil.copytree(made / "llava", tmp_path / "source"))
    long_template(source, 100)
    notes: list[str] = []
    request = ExportRequest(str(source), tmp_path / "bundle", budget="20%", max_prompt_tokens=60, max_new_tokens=200)
    bundle = export(request, note=notes.append)
    (note,) = notes
    assert note.startswith("note: the chat template alone takes ") and "more than 60 prompt tokens" in note
    ask(bundle.folder)


# Whatever exports, runs

RANDOM: dict[str, Callable[[Path], Path]] = {
    "llava-tied": lambda f: write_random_llava(f, RandomLlava(seed=1, layers=2, tied_embeddings=True, layout="4.x")),
    "llava-biases": lambda f: write_random_llava(f, RandomLlava(seed=2, layers=3, attention_bias=True, layout="memory-4.52")),
    "next-mistral": lambda f: write_random_llava_next(f, RandomLlavaNext(seed=3, layers=2, decoder="mistral")),
    "next-tilings": lambda f: write_random_llava_next(
        f, RandomLlavaNext(seed=4, layers=2, vision_layers=2, grid_pinpoints=((84, 84), (84, 336), (168, 84)))
    ),
    "qwen-4.x": lambda f: write_random_qwen2_5_vl(f, RandomQwen25VL(seed=5, layers=2, layout="4.x")),
    "qwen-patches": lambda f: write_random_qwen2_5_vl(
        f, RandomQwen25VL(seed=6, layers=2, patch_size=8, window_size=64, temporal_patch_size=1, max_positions=512)
    ),
}


@pytest.mark.parametrize("write", RANDOM.values(), ids=RANDOM.keys())
@pytest.mark.filterwarnings("ignore")
def test_what_exports_runs(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    source = write(tmp_path / "source")
    bundle = export(ExportRequest(str(source), tmp_path / "bundle", budget="30%", weights="link"))
    with Pipeline(bundle.folder, threads=1) as vlm:
        for size in ((200, 200), (300, 90), (90, 300)):
            assert vlm.generate("What is it?", random_image(0, size), max_new_tokens=2, ignore_eos=True).token_ids
        assert vlm.generate("What is it?", max_new_tokens=2, ignore_eos=True).token_ids


def without_template(made: Path, folder: Path, name: str) -> Path:
    source = Path(shutil.copytree(made / name, folder / "source"))
    template_file(source).unlink()
    return source


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_checkpoint_without_a_template_gets_its_familys_and_says_so(made: Path, tmp_path: Path, name: str) -> None:
    notes: list[str] = []
    source = without_template(made, tmp_path, name)
    bundle = export(ExportRequest(str(source), tmp_path / "bundle", budget="20%", weights="link"), note=notes.append)
    assert [line.split(",")[0] for line in notes] == ["note: the checkpoint has no chat template"]
    assert Pipeline(bundle.folder).generate("What?", random_image(0), max_new_tokens=2).token_ids


@pytest.mark.parametrize("change", ["mistral", "large-vocabulary"])
def test_what_may_be_no_vicuna_gets_no_template_of_vicunas(made: Path, tmp_path: Path, change: str) -> None:
    """Llama 3 and Mistral were trained on others; transformers has none for them either."""
    source = without_template(made, tmp_path, "llava_next")
    config = json.loads((source / "config.json").read_text())
    text = {"model_type": "mistral"} if change == "mistral" else {"vocab_size": 128256}
    (source / "config.json").write_text(json.dumps({**config, "text_config": {**config["text_config"], **text}}))
    with pytest.raises(CheckpointError, match=r"has no chat template; add the model's chat_template\.jinja"):
        export(ExportRequest(str(source), tmp_path / "bundle", budget="20%", weights="link"))
