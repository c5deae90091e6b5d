"""Contenders that need no model; opened in worker processes by tests/measuring/test_turns.py."""

from __future__ import annotations

import os
import time
from typing import Any

from sts_export.errors import RequestError


class Counting:
    """Returns how often it was run; ``order`` is a file that every run is written to."""

    def __init__(self, name: str, order: str) -> None:
        self.name, self.order, self.runs = name, order, 0

    def run(self) -> dict[str, float]:
        self.runs += 1
        with open(self.order, "a") as file:
            file.write(self.name)
        return {"runs": float(self.runs)}

    def describe(self) -> dict[str, Any]:
        return {"warm_up_runs": self.runs}


class Failing(Counting):
    def run(self) -> dict[str, float]:
        super().run()
        if self.runs == 4:  # two warm-up runs, then the second timed one
            raise ValueError("no more\nmemory")
        return {"runs": float(self.runs)}


class Refusing(Counting):
    def run(self) -> dict[str, float]:
        raise RequestError("give another prompt")


class Dying(Counting):
    def run(self) -> dict[str, float]:
        os._exit(7)


class Sleeping(Counting):
    def run(self) -> dict[str, float]:
        time.sleep(60)
        return {}


def opened(target: dict[str, str], task: object) -> Counting:
    kinds = {"counting": Counting, "failing": Failing, "refusing": Refusing, "dying": Dying, "sleeping": Sleeping}
    return kinds[target["kind"]](target["name"], target["order"])
