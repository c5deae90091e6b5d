"""What is written beside the trained weights: the model card with its accuracy table, and the sample pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from transformers import AutoTokenizer, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sts_export.demo.held_out import held_out
from sts_export.demo.questions import KINDS
from sts_export.demo.world import HELD_OUT_SEEDS, WORDS
from sts_export.evaluation.results.statistics import wilson

Score = dict[str, tuple[int, int]]  # kind -> (right, asked)

CARD = """\
# The demo model

A small LLaVA (`LlavaForConditionalGeneration`, {parameters:,} parameters, float16), trained from scratch on the pictures
and questions of `sts_export.demo.world`. Its architecture is LLaVA-1.5's at a smaller size: CLIP vision tower 336 / 14
({vision_layers} layers of {vision_width}; features of the one before the last, CLS dropped, 576 tokens), two-layer
projector, Llama decoder ({text_layers} layers of {text_width}). It knows nothing but its world: six shapes in six
colors and one of {words} words on a textured background, and eight kinds of questions, one of them about two pictures.

The tower was trained alone, on labels of patches and of whole pictures, most of the time on the third of the patches that
has something near (as masked pre-training does, to save time), at last on all; then it was frozen. The projector was drawn
to the embeddings of words. Projector and decoder learned on all visual tokens, grids of 24 x 24 to 12 x 12, with texts of
many lengths before them, at last with a grid and a rotary step of its own for each picture. The decoder never saw a pruned
sequence, and nothing told its attention where to look. `scripts/train_demo.py` does all of it.

## Accuracy

Exact match of greedy answers on {asked} questions about {pictures} held-out pictures (seeds {first} and up; no training
picture has such a seed), all visual tokens, with 95 % Wilson intervals. The first 40 pictures were watched during training.

{table}

`USER: <image>\\n{{question}} ASSISTANT:` is the prompt, ` {{answer}}</s>` the answer.
"""


def table(score: Score) -> str:
    """Accuracy per kind and overall, as Markdown."""
    header = ["kind", "questions", "right", "95 % interval"]
    lines = [header, ["---"] * len(header)]
    total = {"all": (sum(r for r, _ in score.values()), sum(n for _, n in score.values()))}
    for kind, (right, asked) in ({k: score[k] for k in KINDS} | total).items():
        low, high = wilson(right, asked)
        lines.append([kind, str(asked), f"{100 * right / asked:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_card(folder: Path, model: LlavaForConditionalGeneration, pictures: int, asked: int, results: str) -> None:
    config = model.config
    text = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()),
        vision_layers=config.vision_config.num_hidden_layers,
        vision_width=config.vision_config.hidden_size,
        text_layers=config.text_config.num_hidden_layers,
        text_width=config.text_config.hidden_size,
        words=len(WORDS),
        pictures=pictures,
        asked=asked,
        first=HELD_OUT_SEEDS.start,
        table=results,
    )
    (folder / "README.md").write_text(text)


class Answerer:
    """The saved checkpoint behind the ordinary Hugging Face path: image processor, chat template, generate."""

    def __init__(self, folder: Path) -> None:
        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.images = CLIPImageProcessorPil.from_pretrained(folder)

    def __call__(self, images: Sequence[Image], question: str) -> str:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
        prompt = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        token = self.tokenizer.image_token
        inputs = self.tokenizer(prompt.replace(token, token * 576), return_tensors="pt")
        pixels = self.images(images=list(images), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            output = self.model.generate(**inputs, pixel_values=pixels, do_sample=False, max_new_tokens=8)
        new = output[0, inputs["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(new, skip_special_tokens=True)).strip()


def write_pictures(folder: Path, count: int) -> None:
    """The first held-out pictures and all questions about each alone."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    listing = {}
    for index in range(count):
        name = f"scene-{index}.png"
        images, questions = held_out(index)
        images[0].save(folder / name, optimize=True)
        listing[name] = [{"kind": q.kind, "question": q.text, "answer": q.answer} for q in questions if q.pictures == 1]
    (folder / "questions.json").write_text(json.dumps(listing, indent=2) + "\n")
