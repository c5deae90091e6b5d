"""What is written beside the trained weights: the model card with its accuracy table, and the sample pictures."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sts_export.demo.held_out import held_out
from sts_export.demo.questions import KINDS, Question
from sts_export.demo.world import HELD_OUT_SEEDS
from sts_export.evaluation.results.statistics import wilson

Score = dict[str, tuple[int, int]]  # kind -> (right, asked)

CARD = """\
# The demo model

A small LLaVA (`LlavaForConditionalGeneration`, {parameters:,} parameters, fp32), trained from scratch on the pictures
and questions of `sts_export.demo.world`. Its architecture is LLaVA-1.5's at a smaller size: CLIP vision tower 336 / 14
({vision_layers} layers of {vision_width}; features of the one before the last, CLS dropped, 576 tokens), two-layer
projector, Llama decoder ({text_layers} layers of {text_width}). It knows nothing but its world: six shapes in six
colours and a short string on a textured background, and six kinds of questions about them.

## Accuracy

Exact-match accuracy of greedy answers on {asked} questions about {pictures} held-out pictures
(seeds {first} and up; no training picture has such a seed), with 95 % Wilson intervals. "64" and "32" keep that many *random*
visual tokens of the 576 (projected tokens removed from the sequence): what a pruning method must beat.

{table}

`USER: <image>\\n{{question}} ASSISTANT:` is the prompt, ` {{answer}}</s>` the answer. `scripts/train_demo.py` made this folder
and tells how; the first 60 held-out pictures were watched during training, so `scripts/demo_accuracy.py` measures on others.
Attention in four decoder layers was guided during training towards the patches a question is about, in two of four heads:
keep that in mind when comparing pruning methods that score by attention.
"""


def table(full: Score, thinned: dict[int, Score]) -> str:
    """Accuracy per kind and overall, as Markdown."""
    header = ["kind", "n", "576 tokens", "95 % interval", *(f"random {keep}" for keep in thinned)]
    lines = [header, ["---"] * len(header)]
    total = {"all": overall(full)}
    for kind, (right, asked) in ({k: full[k] for k in KINDS} | total).items():
        low, high = wilson(right, asked)
        others = (overall(score) if kind == "all" else score[kind] for score in thinned.values())
        row = [kind, str(asked), f"{100 * right / asked:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}"]
        lines.append(row + [f"{100 * r / n:.1f} %" for r, n in others])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def overall(score: Score) -> tuple[int, int]:
    return sum(r for r, _ in score.values()), sum(n for _, n in score.values())


def write_card(folder: Path, model: LlavaForConditionalGeneration, pictures: int, results: str) -> None:
    config = model.config
    text = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()),
        vision_layers=config.vision_config.num_hidden_layers,
        vision_width=config.vision_config.hidden_size,
        text_layers=config.text_config.num_hidden_layers,
        text_width=config.text_config.hidden_size,
        pictures=pictures,
        asked=sum(len(held_out(i)[1]) for i in range(pictures)),
        first=HELD_OUT_SEEDS.start,
        table=results,
    )
    (folder / "README.md").write_text(text)


class Answerer:
    """The saved checkpoint behind the ordinary Hugging Face path: image processor, chat template, generate."""

    def __init__(self, folder: Path) -> None:
        self.model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.images = CLIPImageProcessorPil.from_pretrained(folder)

    def __call__(self, image: object, question: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        token = self.tokenizer.image_token
        inputs = self.tokenizer(prompt.replace(token, token * 576), return_tensors="pt")
        pixels = self.images(images=image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            output = self.model.generate(**inputs, pixel_values=pixels, do_sample=False, max_new_tokens=8)
        new = output[0, inputs["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(new, skip_special_tokens=True)).strip()


def write_pictures(folder: Path, grades: list[tuple[int, Question, bool]], count: int = 6, least: int = 4) -> None:
    """Sample pictures: the first held-out ones with enough questions that the model answers rightly; those are listed."""
    right: dict[int, list[Question]] = {}
    for index, question, good in grades:
        right.setdefault(index, []).extend([question] * good)
    chosen = sorted(sorted(right, key=lambda index: -min(len(right[index]), least))[:count])
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    listing = {}
    for index in chosen:
        name = f"scene-{index}.png"
        held_out(index)[0].save(folder / name, optimize=True)
        listing[name] = [{"kind": q.kind, "question": q.text, "answer": q.answer} for q in right[index]]
    (folder / "questions.json").write_text(json.dumps(listing, indent=2) + "\n")
