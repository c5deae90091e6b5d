"""A bundle timed at a prompt length it knows, and at one it has never seen."""

from __future__ import annotations

from scripts.gpu.end_to_end.contenders import BundleRunner
from scripts.gpu.end_to_end.task import Task
from scripts.gpu.pipelines import BundleTarget
from sts_export.measuring.turns import Runner


class LengthsRunner(BundleRunner):
    """Each run answers the task's prompt, then one that is a word longer than all before."""

    def __init__(self, target: BundleTarget, task: Task) -> None:
        super().__init__(target, task)
        self._words = 0

    def run(self) -> dict[str, float]:
        self._words += 1
        unseen = self.answer(f"{self._task.prompt}{' picture' * self._words}")
        known = super().run()
        return {**known, "unseen_prefill_ms": unseen["prefill_ms"], "unseen_first_token_ms": unseen["first_token_ms"]}


def open_lengths(target: BundleTarget, task: Task) -> Runner:
    return LengthsRunner(target, task)
