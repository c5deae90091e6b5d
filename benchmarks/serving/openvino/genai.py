"""OpenVINO GenAI's continuous batching, as :class:`benchmarks.serving.openvino.engine.Model` has it."""

from __future__ import annotations

from pathlib import Path

import openvino
import openvino_genai

from benchmarks.serving.openvino.messages import Ask

_REASONS = {"LENGTH": "length", "STOP": "stop"}


class Answering:
    """A request that the pipeline has; ``prompt_tokens`` is known once it has ended."""

    def __init__(self, handle: openvino_genai.GenerationHandle) -> None:
        self._handle = handle
        self.reason: str | None = None

    @property
    def prompt_tokens(self) -> int:
        return int(self._handle.get_perf_metrics().get_num_input_tokens())

    def read(self) -> list[int]:
        """Tokens since the last call; ``reason`` is set with the last ones."""
        tokens: list[int] = []
        while self._handle.can_read():
            for output in self._handle.read().values():
                tokens += output.generated_ids
                self.reason = _REASONS.get(output.finish_reason.name, self.reason)
        status = self._handle.get_status().name
        if self.reason is None and status != "RUNNING":
            self.reason = status.lower()
        return tokens

    def cancel(self) -> None:
        self._handle.cancel()


class GenAi:
    """A folder that optimum-intel exported.

    Args:
        slots: requests that are computed together; others wait inside the pipeline.
        batched_tokens: of a step, prompts cut to fit; GenAI's own default is 256.
        reuse: keep the KV blocks of past prompts (``enable_prefix_caching``).
    """

    def __init__(self, folder: Path, *, slots: int, batched_tokens: int, reuse: bool) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs = slots
        scheduler.max_num_batched_tokens = batched_tokens
        scheduler.enable_prefix_caching = reuse
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU")
        self._tokenizer = self._pipeline.get_tokenizer()

    def add(self, ask: Ask) -> Answering:
        """Runs the vision encoder; the prompt is computed by the next steps."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = ask.tokens
        config.ignore_eos = ask.ignore_eos
        config.do_sample = False
        config.apply_chat_template = False  # it has one message for the pipeline, and no <s> before it
        prompt = self._tokenizer.apply_chat_template(ask.history, add_generation_prompt=True)
        pictures = [openvino.Tensor(picture) for picture in ask.pictures]
        return Answering(self._pipeline.add_request(ask.number, prompt, pictures, config))

    def step(self) -> None:
        self._pipeline.step()

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids))
