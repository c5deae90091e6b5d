"""Try out, before anything is written, what a bundle will be run with: a request that always fails is no use with any weights.

The files are the checkpoint's, the code is the runtime's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from sts_export.checkpoints.checkpoint import Checkpoint
from sts_export.errors import CheckpointError, ImageError, PromptError, RequestError
from sts_export.exporting.plan import ExportPlan

if TYPE_CHECKING:
    from sts_export.requests.preprocessor import Inputs

_PROMPT = "a"
# Square: a strip may be refused where pictures have few tokens.
_PICTURE = (64, 64)
_NO_TEMPLATE = (
    "note: the checkpoint has no chat template, and the usual one of its family is used; "
    "if it was trained on another, add its chat_template.jinja and export again"
)


def check_inputs(checkpoint: Checkpoint, plan: ExportPlan) -> tuple[str, ...]:
    """Prepare a shortest prompt with one picture, as `run` will.

    Returns:
        Lines to be said to whoever exports.

    Raises:
        CheckpointError: tokenizer, chat template, end tokens or image processor are damaged or of another model.
        RequestError: the capacities have no room for any prompt.
    """
    with _companions(checkpoint) as folder:
        inputs, notes = _prepare(folder, plan)
    return (*notes, *_check_room(inputs, plan))


@contextmanager
def _companions(checkpoint: Checkpoint) -> Iterator[Path]:
    """A folder with all of them; an adapter's tokenizer may lie apart from the config.json by which it is opened."""
    if checkpoint.processor_folder == checkpoint.folder:
        yield checkpoint.folder
        return
    with TemporaryDirectory() as together:
        for name, file in checkpoint.companions().items():
            link = Path(together) / name
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(file)
        try:
            yield Path(together)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(together, str(checkpoint.processor_folder))) from error


def _prepare(folder: Path, plan: ExportPlan) -> tuple[Inputs, tuple[str, ...]]:
    from PIL import Image

    from sts_export.requests.preprocessor import Preprocessor

    preprocessor = Preprocessor.open(folder, plan.model, plan.pruning, plan.image_settings)
    notes = () if preprocessor.tokenizer.has_own_template else (_NO_TEMPLATE,)
    try:
        return preprocessor.prepare(_PROMPT, [Image.new("RGB", _PICTURE)]), notes
    except (ImageError, PromptError) as error:
        reason = str(error).split(";")[0]  # what follows is advice to whoever asks, who is not at fault here
        raise CheckpointError(
            f"{folder} makes a model that cannot be asked ({reason}); use the tokenizer, chat template and processor files of "
            "this model"
        ) from error


def _check_room(inputs: Inputs, plan: ExportPlan) -> tuple[str, ...]:
    from sts_export.requests.request import room_for_answer

    text, capacities = inputs.text_tokens, plan.capacities
    alone = f"the chat template alone takes {text} tokens with one image"
    try:
        room_for_answer(plan, inputs.input_ids, inputs.images, inputs.keeps, None)
    except PromptError:
        raise RequestError(
            f"no prompt fits: {alone}, more than {capacities.prompt_tokens} prompt + {capacities.new_tokens} new tokens; "
            f"give --max-prompt-tokens {text} or more"
        ) from None
    if text > capacities.prompt_tokens:
        return (
            f"note: {alone}, more than {capacities.prompt_tokens} prompt tokens: answers will be shorter; "
            f"give --max-prompt-tokens {text} or more",
        )
    return ()
