"""transformers with a static cache and a compiled decode step."""

from __future__ import annotations

from typing import Any

import torch
from transformers import StaticCache

from scripts.gpu.end_to_end.task import Task
from scripts.gpu.end_to_end.transformers_runner import TransformersRunner

_ROWS = 64  # caches are as long as the prompt and the answer, rounded up to this


class CompiledRunner(TransformersRunner):
    """Prefill as it comes, decode by ``torch.compile`` in CUDA graphs; what compiling takes falls into the warm-up.

    The prefill is not compiled: each new prompt length would be compiled anew.
    """

    def __init__(self, checkpoint: str, task: Task) -> None:
        super().__init__(checkpoint, task)
        self._cache: Any = None
        inputs = self._inputs()
        self._capacity = -(-(inputs["input_ids"].shape[1] + task.new_tokens) // _ROWS) * _ROWS
        # Toys only try that it traces.
        options: dict[str, Any] = {"backend": "eager"} if task.device == "cpu" else {"mode": "reduce-overhead"}
        self._compiled: Any = torch.compile(self._model.forward, dynamic=False, **options)

    def _new_cache(self) -> Any:
        """The same tensors every time: a captured graph has their addresses."""
        if self._cache is None:
            self._cache = StaticCache(config=self._model.config.get_text_config(), max_cache_len=self._capacity)
        else:
            self._cache.reset()
        return self._cache

    def _decode(self, token: torch.Tensor, cache: Any, row: int) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        position = torch.tensor([row], device=token.device)
        # As [1, 1] of a larger tensor it would have other strides, and be compiled for anew.
        ids = token.flatten().clone()[None]
        output = self._compiled(input_ids=ids, past_key_values=cache, cache_position=position, use_cache=True, return_dict=True)
        logits: torch.Tensor = output.logits
        return logits[:, -1:].clone()  # the next replay overwrites it
