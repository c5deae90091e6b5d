"""The class that lmms-eval makes and asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.utils import simple_parse_args_string
from tqdm import tqdm

from sts_export.errors import RequestError
from sts_export.generation.pipeline import Pipeline
from sts_export.lmms_eval_adapter.answering import Question, answer_all
from sts_export.lmms_eval_adapter.arguments import read_arguments
from sts_export.lmms_eval_adapter.settings import read_settings


class StsExportModel(lmms):
    """A bundle.

    Args:
        arguments: as :func:`read_arguments` takes them.

    Raises:
        StsExportError: an argument is wrong, or the bundle cannot be opened.
    """

    is_simple = False  # it takes chat messages

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = read_arguments(arguments)
        taken = self.arguments
        self._pipeline = Pipeline(taken.bundle, threads=taken.threads, backend=taken.backend, plugins=taken.plugins)
        self._pipeline.pruning(taken.budget, taken.keep)  # refuses what the bundle cannot have before a task is loaded

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> StsExportModel:
        """As lmms-eval's own, but ``batch_size`` may be in ``arg_string``: it goes before ``--batch_size``, always given."""
        return cls(**{**(additional_config or {}), **simple_parse_args_string(arg_string)})

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Answers in the order of ``requests``, whose arguments are those of chat models.

        Raises:
            StsExportError: a request is wrong or the engine failed; no answer takes the place of a missing one.
        """
        questions = [self._question(*request.args) for request in requests]
        with tqdm(total=len(questions), desc="sts-export", unit="request") as bar:
            results = answer_all(self._pipeline, questions, self.arguments.batch_size, bar.update, **self.arguments.pruning)
        return [
            GenerationResult(result.text, TokenCounts(input_tokens=result.prompt_tokens, output_tokens=len(result.token_ids)))
            for result in results
        ]

    def _question(
        self,
        context: str,
        doc_to_messages: Callable[[Any], Sequence[Mapping[str, Any]]],
        gen_kwargs: Mapping[str, Any],
        doc_id: Any,
        task: str,
        split: str,
    ) -> Question:
        taken = self.arguments
        try:
            settings = read_settings(gen_kwargs, self._pipeline, max_new_tokens=taken.max_new_tokens, seed=taken.seed)
        except RequestError as error:
            raise type(error)(f"{task}: {error}") from error
        return Question(f"{task}, {split} {doc_id}", settings, lambda: doc_to_messages(self.task_dict[task][split][doc_id]))

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        """Not supported."""
        raise RequestError(_refusal("loglikelihood", requests, "it scores given answers, and a bundle writes its own"))

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        """Not supported."""
        raise RequestError(_refusal("generate_until_multi_round", requests, "its questions depend on earlier answers"))


def _refusal(kind: str, requests: Sequence[Any], reason: str) -> str:
    tasks = ", ".join(sorted({str(request.task_name) for request in requests}))
    return f"{tasks}: requests of the kind {kind} are not supported ({reason}); choose tasks of the kind generate_until"
