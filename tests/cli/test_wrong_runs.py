"""Pictures, prompts and settings that a bundle cannot be asked with: one line, exit code 2, and nothing left behind."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from sts_export.bundle.manifest import open_bundle
from sts_export.testing.checkpoints import random_image
from tests.cli.helpers import Work, check_refused, rejson


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


def vocabulary(work: Work) -> int:
    return open_bundle(work.bundle).manifest.model.decoder.vocab_size


# id: (what is typed, what the line must say)
ERRORS: dict[str, tuple[Callable[[Work], list[str]], str]] = {
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
    "prompt-fewer-placeholders": (
        lambda w: w.run("--image", w.picture, prompt="<image> Which?"),
        "1 <image> placeholder(s) but 2 image(s)",
    ),
    "prompt-placeholders-of-messages": (
        lambda w: w.run("--image", w.picture, prompt="<image> Which?"),
        'one image for each placeholder of a prompt or {"type": "image"} entry of messages',
    ),
    "messages-missing": (
        lambda w: ["run", w.bundle, "--messages", str(w.folder / "none.json")],
        "none.json does not exist; give a list of messages",
    ),
    "messages-is-folder": (lambda w: ["run", w.bundle, "--messages", str(w.folder)], "cannot be read (Is a directory)"),
    "images-too-many": (
        lambda w: w.run(*["--image", w.picture] * 9),
        "10 image(s) of 360 visual tokens (180 rows after stage 1) leave no room",
    ),
    "second-image-missing": (lambda w: w.run("--image", "none.png"), "image 'none.png' does not exist"),
    "prompt-too-long": (lambda w: w.run(prompt="table " * 300), "the prompt is too long"),
    "new-tokens-zero": (lambda w: w.run("--max-new-tokens", "0"), "max_new_tokens must be at least 1"),
    "new-tokens-too-many": (lambda w: w.run("--max-new-tokens", "5000"), "5000 new tokens do not fit"),
    "run-budget-above": (lambda w: w.run("--budget", "12.6"), "layer can be 1 to 12; choose within that, or export"),
    "run-budget-share-above": (
        lambda w: w.run("--budget", "50%"),
        "budget 50% is unreachable: with this bundle the average share of visual tokens per layer can be 2.778% to 33.333% "
        "(1 to 12 tokens) for a picture of 36; choose within that",
    ),
    "run-budget-zero": (lambda w: w.run("--budget", "0"), "budget 0 is unreachable"),
    "run-budget-text": (lambda w: w.run("--budget", "few"), "budget 'few' is not a plain number"),
    "run-budget-and-keep": (lambda w: w.run("--budget", "6", "--keep", "9,3"), "give either a budget"),
    "run-keep-above": (
        lambda w: w.run("--keep", "19,6"),
        "this bundle was exported for K = 18 and K' = 6, and cannot keep 19,6: choose K from 1 to 18 and K' from 1 to 6, or "
        "export with a larger budget",
    ),
    "run-keep-one-number": (lambda w: w.run("--keep", "9"), "--keep '9' is not two numbers"),
    "run-keep-zero": (lambda w: w.run("--keep", "9,0"), "cannot keep 9,0: choose K from 1 to 18 and K' from 1 to 6"),
    "temperature-negative": (lambda w: w.run("--temperature=-1"), "temperature must be"),
    "temperature-nan": (lambda w: w.run("--temperature", "nan"), "temperature must be"),
    "top-p-above-one": (lambda w: w.run("--top-p", "1.5"), "top_p must be"),
    "top-k-negative": (lambda w: w.run("--top-k=-1"), "top_k must be"),
    "min-p-above-one": (lambda w: w.run("--min-p", "1.5"), "min_p must be a number from 0 to 1, not 1.5"),
    "sample-temperature-negative": (lambda w: w.run("--sample", "--temperature=-1"), "temperature must be"),
    "repetition-penalty-zero": (lambda w: w.run("--repetition-penalty", "0"), "repetition_penalty must be a number above 0"),
    "repetition-penalty-text": (lambda w: w.run("--repetition-penalty", "x"), "--repetition-penalty: invalid float value: 'x'"),
    "presence-penalty-above-two": (
        lambda w: w.run("--presence-penalty", "3"),
        "presence_penalty must be a number from -2",
    ),
    "frequency-penalty-nan": (lambda w: w.run("--frequency-penalty", "nan"), "frequency_penalty must be a number from -2 to 2"),
    "ngram-size-negative": (lambda w: w.run("--no-repeat-ngram-size=-1"), "no_repeat_ngram_size must be a whole number"),
    "min-new-tokens-negative": (lambda w: w.run("--min-new-tokens=-1"), "min_new_tokens must be a whole number"),
    "min-new-tokens-above-max": (
        lambda w: w.run("--min-new-tokens", "9", "--max-new-tokens", "8"),
        "min_new_tokens 9 is more than the 8 that may be generated",
    ),
    "logit-bias-malformed": (lambda w: w.run("--logit-bias", "13"), "--logit-bias '13' is not a token id and a number"),
    "logit-bias-text": (lambda w: w.run("--logit-bias", "a=1"), "give ID=VALUE such as 13=-2.5"),
    "logit-bias-negative-id": (lambda w: w.run("--logit-bias=-1=2"), "logit_bias maps token ids to numbers, not -1 to 2.0"),
    "logit-bias-nan": (lambda w: w.run("--logit-bias", "1=nan"), "logit_bias maps token ids to numbers, not 1 to nan"),
    "logit-bias-unknown-token": (lambda w: w.run("--logit-bias", "99999=1"), "logit_bias names token 99999; the model has"),
    "suppress-token-unknown": (
        lambda w: w.run("--suppress-token", "99999"),
        "suppress_tokens names token 99999; the model has token ids from 0 to",
    ),
    "suppress-token-text": (lambda w: w.run("--suppress-token", "the"), "--suppress-token: invalid int value: 'the'"),
    "every-token-suppressed": (
        lambda w: w.run(*[part for token in range(vocabulary(w)) for part in ("--suppress-token", str(token))]),
        "the generation settings exclude every token",
    ),
    "generation-settings-damaged": (
        lambda w: w.export_broken(lambda f: (f / "generation_config.json").write_text("[")),
        "generation_config.json is not valid JSON",
    ),
    "generation-settings-wrong": (
        lambda w: w.export_broken(lambda f: rejson(f / "generation_config.json", repetition_penalty="much")),
        "generation_config.json: repetition_penalty must be a number above 0, not 'much'; use 1 to turn it off; correct",
    ),
    "generation-settings-unknown-token": (
        lambda w: w.export_broken(lambda f: rejson(f / "generation_config.json", bad_words_ids=[[99999]])),
        "generation_config.json: bad_words_ids names token 99999; the model has token ids from 0 to",
    ),
    "seed-negative": (lambda w: w.run("--seed=-1"), "seed must be"),
    "logprobs-too-many": (
        lambda w: w.run("--json", "--logprobs", "21"),
        "logprobs must be a whole number from 0 to 20, not 21; leave it out for none",
    ),
    "logprobs-without-json": (lambda w: w.run("--logprobs", "2"), "--logprobs belongs to --json"),
    "stop-empty": (lambda w: w.run("--stop", ""), "a stop string must be non-empty"),
    "threads-zero": (lambda w: w.run("--threads", "0"), "threads must be at least 1"),
    "threads-too-many": (lambda w: w.run("--threads", "100000"), "threads must be at most 1024"),
}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("arguments", "expected"), ERRORS.values(), ids=ERRORS.keys())
def test_wrong_runs(
    work: Work, capsys: pytest.CaptureFixture[str], arguments: Callable[[Work], list[str]], expected: str
) -> None:
    check_refused(work, capsys, arguments, expected)
