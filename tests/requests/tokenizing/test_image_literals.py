"""The image token in the text of messages is text: tokenized as by a tokenizer whose image token has another name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sts_export import Pipeline
from sts_export.demo import MODEL_DIR
from sts_export.errors import PromptError
from sts_export.families.llava import CHAT_TEMPLATE as LLAVA_TEMPLATE
from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.requests.prompt import ChatTokenizer
from sts_export.requests.tokenizing.image_literals import PLACE, tokenizer_of_places
from sts_export.testing.checkpoints import IMAGE_TOKEN, RandomQwen25VL, random_image
from sts_export.testing.checkpoints.llava_next import MISTRAL_CHAT_TEMPLATE
from sts_export.testing.checkpoints.qwen2_5_vl import QWEN_CHAT_TEMPLATE, qwen_tokenizer
from sts_export.testing.checkpoints.tokenizers import llama_tokenizer
from tests.support.pipelines import KEEP
from tests.support.small_tokenizers import TOKENIZERS

IMAGE = {"type": "image"}
OTHER = "[[IMG]]"  # the image token's name in the reference tokenizers
STRING_TEMPLATE = "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
SPELLED_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ '<' + 'image' + '>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %}"
)


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


def user(*parts: dict[str, str]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def opened(folder: Path, kind: str, template: str = LLAVA_TEMPLATE) -> ChatTokenizer:
    PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[kind](), bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return ChatTokenizer.open(folder, template)


@pytest.fixture(scope="module", params=TOKENIZERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ChatTokenizer, Tokenizer]:
    """A tokenizer of ours, and one of the tokenizers library in which <image> is nothing special."""
    return opened(tmp_path_factory.mktemp("literals"), request.param), TOKENIZERS[request.param](OTHER)


def id_of_other(reference: Tokenizer) -> int:
    number = reference.token_to_id(OTHER)
    assert number is not None
    return number


def ids_of(ours: ChatTokenizer, messages: list[dict[str, Any]], images: int, image_id: int) -> list[int]:
    ids: list[int] = ours.encode(ours.pieces(messages, images), image_id, [2] * images).tolist()
    return ids


@pytest.mark.parametrize(
    "said",
    ["what is <image> here", "<image>", "the<image>cat <image><image>", "<image>\n</s> x", "héllo <image> 漢字", "a <image"],
)
def test_written_tokens_are_text(pair: tuple[ChatTokenizer, Tokenizer], said: str) -> None:
    ours, reference = pair
    image_id = id_of_other(reference)
    for images in (0, 1, 2):
        places = f"{OTHER}{OTHER}\n" * images
        expected = reference.encode(f"USER: {places}{said} ASSISTANT:").ids
        assert ids_of(ours, user(*[IMAGE] * images, text(said)), images, image_id) == expected
        assert expected.count(image_id) == 2 * images
    spoken = ids_of(ours, user(text(said)), 0, image_id)
    assert ours.decode(spoken) == f"USER: {said} ASSISTANT:".replace("</s>", "")


FRAGMENTS = st.lists(st.sampled_from(["<image>", "<", "image", ">", "the cat", " ", "\n", "é", "<im", "age>"]), max_size=6)


@given(system=FRAGMENTS, first=FRAGMENTS, second=FRAGMENTS, images=st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_no_text_of_any_role_is_an_image(
    pair: tuple[ChatTokenizer, Tokenizer], system: list[str], first: list[str], second: list[str], images: int
) -> None:
    ours, reference = pair
    image_id = id_of_other(reference)
    said = ["".join(parts) for parts in (system, first, second)]
    messages = [
        {"role": "system", "content": said[0]},
        *user(*[IMAGE] * images, text("see " + said[1])),
        {"role": "assistant", "content": [text(said[2])]},
    ]
    rendered = f"{said[0]} USER: {(OTHER * 2 + chr(10)) * images}see {said[1]} ASSISTANT: {said[2]} ASSISTANT:"
    assert ids_of(ours, messages, images, image_id) == reference.encode(rendered).ids


def test_parts_do_not_join_to_an_image(tmp_path: Path) -> None:
    """Neither two parts of one message, nor a part and what a template writes."""
    ours = opened(tmp_path, "byte-level", STRING_TEMPLATE)
    image_id = 2
    assert ours.encode(["<image>", ""], image_id, [1]).tolist().count(image_id) == 1
    for parts in ([text("<im"), text("age>")], [text("<"), text("image>")], [text("<image"), text(">"), text("x")]):
        ids = ids_of(ours, user(IMAGE, *parts), 1, image_id)
        assert ids.count(image_id) == 2 and "<image>" in ours.decode(ids)
    role = opened(tmp_path, "byte-level", "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}")
    ids = ids_of(role, [{"role": "image", "content": "the cat"}], 0, image_id)
    assert image_id not in ids and role.decode(ids) == "<image>the cat"


@pytest.mark.parametrize(("family", "image_token"), [("llava", "<image>"), ("mistral", "<image>"), ("qwen", "<|image_pad|>")])
def test_families(tmp_path: Path, family: str, image_token: str) -> None:
    """By the templates of the public checkpoints, for all roles; decoded, the text comes back."""
    qwen = RandomQwen25VL()
    tokenizer = qwen_tokenizer(qwen) if family == "qwen" else llama_tokenizer(384)
    template = {"llava": LLAVA_TEMPLATE, "mistral": MISTRAL_CHAT_TEMPLATE, "qwen": QWEN_CHAT_TEMPLATE}[family]
    image_id = qwen.token(image_token) if family == "qwen" else IMAGE_TOKEN
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    ours = ChatTokenizer.open(tmp_path, None, image_token)
    messages = [
        {"role": "system", "content": f"Never say {image_token}."},
        *user(IMAGE, text(f"What is {image_token}?")),
        {"role": "assistant", "content": f"{image_token} is a tag."},
        *user(text("Why?")),
    ]
    ids = ids_of(ours, messages, 1, image_id)
    assert ids.count(image_id) == 2
    said = ours.decode(ids)
    assert all(part in said for part in (f"Never say {image_token}.", f"What is {image_token}?", f"{image_token} is a tag."))
    # Without the written tokens, transformers' ids.
    plain = json.loads(json.dumps(messages).replace(image_token, "that"))
    rendered = tokenizer.apply_chat_template(_lists(plain), chat_template=template, tokenize=False, add_generation_prompt=True)
    expected = tokenizer(
        rendered.replace(image_token, image_token * 2), add_special_tokens=not rendered.startswith(tokenizer.bos_token or "\0")
    )["input_ids"]
    assert ids_of(ours, plain, 1, image_id) == expected


def _lists(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**message, "content": [text(message["content"])] if isinstance(message["content"], str) else message["content"]}
        for message in messages
    ]


def test_the_demo_model() -> None:
    ours = ChatTokenizer.open(MODEL_DIR)
    whole = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    # Its tokenizer splits words at spaces, so the literal's own tokens are those of its three parts, which merge nowhere.
    parts = [token for part in (" <", "image", ">") for token in whole.encode(part, add_special_tokens=False).ids]
    ids = ids_of(ours, user(IMAGE, text("what is <image> ?")), 1, 4)
    start = next(index for index in range(len(ids)) if ids[index : index + len(parts)] == parts)
    assert ids.count(4) == 2 and ours.decode(ids[start : start + len(parts)]) == " <image>"


def test_a_plain_prompt_keeps_its_places(pair: tuple[ChatTokenizer, Tokenizer]) -> None:
    ours, reference = pair
    expected = reference.encode(f"USER: is {OTHER}{OTHER} like it? ASSISTANT:").ids
    image_id = id_of_other(reference)
    assert ours.encode(ours.pieces("is <image> like it?", 1), image_id, [2]).tolist() == expected
    # With a system message, which is text whatever it holds.
    messages = ours.with_system("no <image>", "is <image> like it?", 1)
    expected = reference.encode(f"no <image> USER: is {OTHER}{OTHER} like it? ASSISTANT:").ids
    assert ours.encode(ours.pieces(messages, 1), image_id, [2]).tolist() == expected


def test_the_error_says_how_to_send_it_as_text(pair: tuple[ChatTokenizer, Tokenizer]) -> None:
    ours, _ = pair
    with pytest.raises(PromptError, match=r"1 <image> placeholder.*to send <image> as text, send messages"):
        ours.pieces("what is <image>?", 0)
    with pytest.raises(PromptError, match=r"0 <image> placeholder.*<image> in the text of messages is text"):
        ours.pieces(user(text("what is <image>?")), 1)


@pytest.mark.parametrize("where", ["text", "role", "system", "plain"])
def test_the_mark_of_places_is_no_text(pair: tuple[ChatTokenizer, Tokenizer], where: str) -> None:
    ours, _ = pair
    chats: dict[str, Any] = {
        "text": user(text(f"a{PLACE}b")),
        "role": [{"role": f"us{PLACE}er", "content": "a"}],
        "system": [{"role": "system", "content": PLACE}, *user(text("a"))],
        "plain": f"a{PLACE}b",
    }
    for images in (0, 1):
        with pytest.raises(PromptError, match=r"'\\ufdd0', which marks places") as caught:
            ours.pieces(chats[where], images)
        assert str(caught.value).isascii()


def test_a_template_that_spells_the_token_takes_no_text_with_it(tmp_path: Path) -> None:
    ours = opened(tmp_path, "byte-level", SPELLED_TEMPLATE)
    assert ours.pieces(user(IMAGE, text("what?")), 1) == ["", "what?"]
    assert ours.pieces("what <image> is", 1) == ["what ", " is"]
    with pytest.raises(PromptError, match="'<image>', which marks places of images"):
        ours.pieces(user(IMAGE, text("what is <image>?")), 1)


# The copy of the tokenizer


def vocabulary_with(image_token: str) -> dict[str, int]:
    return {token: index for index, token in enumerate(["<unk>", "<", "im", "age", ">", "<im", "age>", image_token, "x"])}


def merging() -> Tokenizer:
    """BPE that merges its way to <image>, which is an added token, too."""
    merges = [("<", "im"), ("age", ">"), ("<im", "age>")]
    vocabulary = {**vocabulary_with("<image>"), **{letter: 20 + index for index, letter in enumerate("imageé")}}
    steps = [("i", "m"), ("a", "g"), ("ag", "e")]
    tokenizer = Tokenizer(models.BPE({**vocabulary, "ag": 40}, [*steps, *merges], unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    return tokenizer


def whole_words() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({**vocabulary_with("<image>"), "e": 20}, [], unk_token="<unk>", ignore_merges=True))
    tokenizer.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    return tokenizer


def unigram(added: bool = True) -> Tokenizer:
    scores = [("<unk>", 0.0), ("<", -5.0), ("image", -5.0), (">", -5.0), ("<image>", -1.0), ("x", -2.0)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    if added:
        tokenizer.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    return tokenizer


def words(added: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "x": 1, "<image>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if added:
        tokenizer.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "literal"),
    [
        (merging(), ["<im", "age>"]),
        (whole_words(), None),
        (unigram(), ["<", "image", ">"]),
        (unigram(added=False), ["<", "image", ">"]),
        (words(), ["<unk>"]),
        (words(added=False), ["<unk>"]),
    ],
    ids=["merges", "ignore-merges", "unigram", "unigram-ordinary", "words", "words-ordinary"],
)
def test_a_token_of_the_base_vocabulary(tokenizer: Tokenizer, literal: list[str] | None) -> None:
    """It is reached by no merge and no look-up, and its id is that of a place."""
    token_id = tokenizer.token_to_id("<image>")
    assert tokenizer.encode("<image>").ids == [token_id]  # what has to be prevented
    copy = tokenizer_of_places(tokenizer, "<image>")
    assert copy.encode(PLACE).ids == [token_id]
    found = copy.encode("<image>")
    assert token_id not in found.ids
    if literal is not None:
        assert found.tokens == literal
    assert copy.encode(f"x{PLACE}{PLACE}").ids == [tokenizer.token_to_id("x"), token_id, token_id]
    assert copy.get_vocab_size() == tokenizer.get_vocab_size()


def test_ids_of_other_added_tokens_stay(tmp_path: Path) -> None:
    """Those after the image token, those before it, and those in the base vocabulary."""
    tokenizer = TOKENIZERS["llama"]()
    tokenizer.add_tokens([AddedToken("<later>", normalized=False), AddedToken(" the cat", normalized=True)])
    copy = tokenizer_of_places(tokenizer, "<image>")
    vocabulary = tokenizer.get_vocab()
    vocabulary[PLACE] = vocabulary.pop("<image>")
    assert copy.get_vocab() == vocabulary
    for said in ("on the mat</s><later> the cat", "héllo<0x41> the<s>"):
        assert copy.encode(said).ids == tokenizer.encode(said).ids


# Through the pipeline


def test_answers_about_a_written_token(vlm: Pipeline) -> None:
    messages = user(IMAGE, text("What is <image>?"))
    ids = vlm.prepare_ids(messages, [KEEP[0]])
    assert (ids == VISUAL_ROW).sum() == KEEP[0] and IMAGE_TOKEN not in ids
    alone = vlm.generate(messages, random_image(0), max_new_tokens=2, ignore_eos=True)
    both = vlm.generate([messages, "What is it?"], [random_image(0), random_image(1)], max_new_tokens=2, ignore_eos=True)
    assert both[0].token_ids == alone.token_ids and alone.prompt_tokens == len(ids)
    without = vlm.prepare_ids(user(text("What is <image>?")), [])
    assert (without >= 0).all() and "What is <image>?" in vlm.tokenizer.decode(without.tolist())
