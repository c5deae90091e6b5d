"""ChatTokenizer: templates, placeholders and parity with transformers' LlavaProcessor."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sts_export.errors import CheckpointError, PromptError
from sts_export.families.llava import CHAT_TEMPLATE as LLAVA_TEMPLATE
from sts_export.requests.prompt import ChatTokenizer
from tests.support.small_tokenizers import TOKENIZERS, llama_like

STRING_TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
PLACED_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}:"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %};{% endfor %}"
)


@pytest.fixture(params=TOKENIZERS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint's tokenizer files, without a template."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = TOKENIZERS[request.param]()
    unk = "<unk>" if request.param == "llama" else None
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token=unk).save_pretrained(
        tmp_path
    )
    return tmp_path


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def llava_processor(folder: Path, template: str = LLAVA_TEMPLATE) -> Any:
    from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaProcessor

    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return LlavaProcessor(
        image_processor,
        AutoTokenizer.from_pretrained(folder),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def image_id(folder: Path) -> int:
    from transformers import AutoTokenizer

    token_id = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<image>")
    assert isinstance(token_id, int)
    return token_id


def refusal(kind: type[Exception], call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert message and "\n" not in message and ";" in message
    return message


def user(*parts: Any) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts],
    }


CONVERSATION = [user(None, "what is on the table?"), {"role": "assistant", "content": "a cube"}, user("a red cube?")]


def test_plain_prompt(folder: Path) -> None:
    tokenizer = ChatTokenizer.open(folder, LLAVA_TEMPLATE)
    assert tokenizer.image_token == "<image>"
    assert tokenizer.render("what?", 1) == "USER: <image>\nwhat? ASSISTANT:"
    assert tokenizer.render("what?", 2) == "USER: <image>\n<image>\nwhat? ASSISTANT:"
    assert tokenizer.render("what?", 0) == "USER: what? ASSISTANT:"


def test_placeholders_stay_where_they_are(folder: Path) -> None:
    tokenizer = ChatTokenizer.open(folder, LLAVA_TEMPLATE)
    assert tokenizer.render("is <image> like <image>?", 2) == "USER: is <image> like <image>? ASSISTANT:"


def test_messages(folder: Path) -> None:
    tokenizer = ChatTokenizer.open(folder, LLAVA_TEMPLATE)
    expected = "USER: <image>\nwhat is on the table? ASSISTANT: a cube USER: a red cube? ASSISTANT:"
    assert tokenizer.render(CONVERSATION, 1) == expected
    assert tokenizer.render([{"role": "user", "content": "<image>\nwhat?"}], 0) == "USER: <image>\nwhat? ASSISTANT:"
    assert (
        tokenizer.render(({"role": "system", "content": "Be brief."}, user("what?")), 0) == "Be brief. USER: what? ASSISTANT:"
    )


@pytest.mark.parametrize("template", [LLAVA_TEMPLATE, PLACED_TEMPLATE])
@pytest.mark.parametrize(
    "prompt",
    [
        "what is on the table?",
        "  two  spaces, héllo 漢字 \n\n and lines\n",
        "what is <image> here",
        "end </s> in <s> the middle",
        "<image>glued<image> on",
    ],
)
def test_same_ids_as_transformers(folder: Path, template: str, prompt: str) -> None:
    tokenizer = ChatTokenizer.open(folder, template)
    processor = llava_processor(folder, template)
    num_images = max(1, prompt.count("<image>"))
    images = [Image.new("RGB", (50, 40))] * num_images
    parts = [user(prompt)] if "<image>" in prompt else [user(*[None] * num_images, prompt)]

    text = tokenizer.render(prompt, num_images)
    assert text == processor.apply_chat_template(parts, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(text, image_id(folder), [4] * num_images)
    assert ids.dtype == np.int64 and ids.ndim == 1
    add_special_tokens = not text.startswith("<s>")  # what apply_chat_template(tokenize=True) does
    expected = processor(text=text, images=images, add_special_tokens=add_special_tokens)["input_ids"][0]
    assert ids.tolist() == list(expected)
    assert int((ids == image_id(folder)).sum()) == 4 * num_images


def test_same_ids_as_apply_chat_template(folder: Path) -> None:
    for template in (LLAVA_TEMPLATE, PLACED_TEMPLATE):
        tokenizer = ChatTokenizer.open(folder, template)
        with_image = {
            **CONVERSATION[0],
            "content": [{"type": "image", "image": Image.new("RGB", (50, 40))}, CONVERSATION[0]["content"][1]],
        }
        messages = [with_image, {"role": "assistant", "content": [{"type": "text", "text": "a cube"}]}, CONVERSATION[2]]
        processor = llava_processor(folder, template)
        expected = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True)
        ids = tokenizer.encode(tokenizer.render(CONVERSATION, 1), image_id(folder), [4])
        assert ids.tolist() == np.asarray(expected["input_ids"])[0].tolist()


def test_bos_comes_once(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=llama_like(), bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path)
    for template in (LLAVA_TEMPLATE, PLACED_TEMPLATE):
        tokenizer = ChatTokenizer.open(tmp_path, template)
        ids = tokenizer.encode(tokenizer.render("the cat", 0), image_id(tmp_path), [])
        assert ids[0] == 1 and (ids == 1).sum() == 1


def test_every_image_has_its_own_number_of_tokens(folder: Path) -> None:
    tokenizer = ChatTokenizer.open(folder, LLAVA_TEMPLATE)
    token = image_id(folder)
    ids = tokenizer.encode("a<image>b<image>", token, [3, 1])
    runs = [len(run) for run in re.findall("1+", "".join(str(int(id == token)) for id in ids))]
    assert runs == [3, 1]


def test_decode_skips_special_tokens(folder: Path) -> None:
    tokenizer = ChatTokenizer.open(folder, LLAVA_TEMPLATE)
    ids = tokenizer.encode("the table, héllo 漢.<image></s>", image_id(folder), [2])
    assert tokenizer.decode(ids.tolist()) == tokenizer.decode(tuple(ids)) == "the table, héllo 漢."


def test_byte_tokens(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    for name, count in (("llama", 256), ("byte-level", 0)):
        PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[name](), eos_token="</s>").save_pretrained(tmp_path)
        assert len(ChatTokenizer.open(tmp_path, LLAVA_TEMPLATE).byte_token_ids) == count


def test_wrong_number_of_images(folder: Path) -> None:
    tokenizer = ChatTokenizer.open(folder, LLAVA_TEMPLATE)
    message = refusal(PromptError, tokenizer.render, "<image> and <image>", 3)
    assert "2 <image> placeholder" in message and "3 image(s)" in message
    assert "1 <image>" in refusal(PromptError, tokenizer.render, CONVERSATION, 2)
    assert "0 <image>" in refusal(PromptError, tokenizer.render, [user("what?")], 1)
    assert "1 <image>" in refusal(PromptError, tokenizer.render, [user(None, "what?")], 0)
    assert "2 <image>" in refusal(PromptError, tokenizer.encode, "<image><image>", 5, [4])
    assert "at least 1" in refusal(PromptError, tokenizer.encode, "<image>", 5, [0])


@pytest.mark.parametrize("prompt", ["", "   \n", "<image>", [user(None, " ")], [user(None)], [{"role": "user", "content": ""}]])
def test_empty_prompt(folder: Path, prompt: Any) -> None:
    assert "empty" in refusal(PromptError, ChatTokenizer.open(folder, LLAVA_TEMPLATE).render, prompt, 1)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        None,
        5,
        b"what?",
        {"role": "user", "content": "what?"},
        ["what?"],
        [{"role": "user"}],
        [{"content": "what?"}],
        [{"role": 3, "content": "what?"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "video"}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": ["what?"]}],
    ],
)
def test_malformed_messages(folder: Path, messages: Any) -> None:
    refusal(PromptError, ChatTokenizer.open(folder, LLAVA_TEMPLATE).render, messages, 0)


@pytest.mark.parametrize("key", ["image", "path", "url", "base64", "image_url"])
def test_pictures_named_in_messages_are_not_passed_over(folder: Path, key: str) -> None:
    """transformers' processors would open them; here the picture given beside the messages would be taken for them."""
    content = [{"type": "image", key: "scene.png"}, {"type": "text", "text": "what?"}]
    tokenizer = ChatTokenizer.open(folder, LLAVA_TEMPLATE)
    message = refusal(PromptError, tokenizer.render, [{"role": "user", "content": content}], 1)
    assert f'message 1 names a picture ("{key}")' in message and "--image" in message


def test_template_that_refuses(folder: Path) -> None:
    strict = "{% if messages|length > 1 %}{{ raise_exception('one\nonly') }}{% endif %}" + LLAVA_TEMPLATE
    tokenizer = ChatTokenizer.open(folder, strict)
    assert "one only" in refusal(PromptError, tokenizer.render, CONVERSATION, 1)


def test_template_for_strings(folder: Path) -> None:
    tokenizer = ChatTokenizer.open(folder, STRING_TEMPLATE)
    assert tokenizer.render("what?", 1) == "[user] <image>\nwhat?\n[assistant]"
    assert tokenizer.render([user("see ", None, "here")], 1) == "[user] see <image>\nhere\n[assistant]"


def test_where_the_template_comes_from(folder: Path) -> None:
    def template() -> str:
        return ChatTokenizer.open(folder, "default {{ messages[0]['content'] }}").render("x", 0).split()[0]

    assert template() == "default"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write(folder, "tokenizer_config.json", {**config, "chat_template": "tokenizer {{ messages[0]['content'] }}"})
    assert template() == "tokenizer"
    write(folder, "chat_template.jinja", "jinja {{ messages[0]['content'] }}")
    assert template() == "jinja"
    write(folder, "chat_template.json", {"chat_template": "json {{ messages[0]['content'] }}"})
    assert template() == "json"
    write(folder, "processor_config.json", {"chat_template": "processor {{ messages[0]['content'] }}"})
    assert template() == "processor"


def test_no_template(folder: Path) -> None:
    assert "chat template" in refusal(CheckpointError, ChatTokenizer.open, folder)


@pytest.mark.parametrize("template", ["{% for %}", "{{ messages.nothing.at.all }}", "no prompt in here"])
def test_broken_template(folder: Path, template: str) -> None:
    assert "chat template" in refusal(CheckpointError, ChatTokenizer.open, folder, template)


@pytest.mark.parametrize(
    "name", ["chat_template.json", "processor_config.json", "generation_config.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_json(folder: Path, name: str, content: str) -> None:
    write(folder, name, content)
    refusal(CheckpointError, ChatTokenizer.open, folder, LLAVA_TEMPLATE)


def test_missing_or_damaged_tokenizer(folder: Path, tmp_path: Path) -> None:
    assert "not a folder" in refusal(CheckpointError, ChatTokenizer.open, tmp_path / "nowhere")
    write(folder, "tokenizer.json", '{"version": "1.0"')
    assert "tokenizer.json" in refusal(CheckpointError, ChatTokenizer.open, folder, LLAVA_TEMPLATE)
    (folder / "tokenizer.json").unlink()
    refusal(CheckpointError, ChatTokenizer.open, folder, LLAVA_TEMPLATE)


def test_tokenizer_of_another_model(folder: Path) -> None:
    tokenizer = ChatTokenizer.open(folder, LLAVA_TEMPLATE)
    assert "belongs to the model" in refusal(CheckpointError, tokenizer.encode, "<image> x", 32000, [4])


def test_own_image_token(folder: Path) -> None:
    write(folder, "processor_config.json", {"image_token": "<s>"})
    tokenizer = ChatTokenizer.open(folder, STRING_TEMPLATE)
    assert tokenizer.image_token == "<s>"
    assert tokenizer.render("what?", 1) == "[user] <s>\nwhat?\n[assistant]"


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_opens_without_torch(folder: Path) -> None:
    """With a llava config.json beside it, as in a checkpoint; nothing on stderr."""
    write(folder, "config.json", {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]})
    script = f"""
import sys
from pathlib import Path
sys.modules["torch"] = sys.modules["torchvision"] = None
from sts_export.families.llava import CHAT_TEMPLATE as LLAVA_TEMPLATE
from sts_export.requests.prompt import ChatTokenizer
from tests.support.small_tokenizers import TOKENIZERS, llama_like
tokenizer = ChatTokenizer.open(Path({str(folder)!r}), LLAVA_TEMPLATE)
text = tokenizer.render("what is on the table?", 1)
print(tokenizer.encode(text, {image_id(folder)}, [3]).tolist())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    tokenizer = ChatTokenizer.open(folder, LLAVA_TEMPLATE)
    expected = tokenizer.encode(tokenizer.render("what is on the table?", 1), image_id(folder), [3]).tolist()
    assert json.loads(done.stdout) == expected
    assert done.stderr == ""
