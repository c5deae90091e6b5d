"""Progress on a terminal; nothing elsewhere."""

from __future__ import annotations

from typing import Any, ClassVar


class count_bar:
    """A counter."""

    _unit: ClassVar[dict[str, Any]] = {}

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Any = None

    def __enter__(self) -> Any:
        return self._update

    def _update(self, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=self._label, disable=None, **self._unit)
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


class byte_bar(count_bar):
    """A byte counter."""

    _unit: ClassVar[dict[str, Any]] = {"unit": "B", "unit_scale": True}


class phase_bar:
    """What TensorRT is doing."""

    def __init__(self) -> None:
        self._phase: tuple[str, str] | None = None
        self._bar: Any = None

    def __enter__(self) -> Any:
        return self._update

    def _update(self, graph: str, phase: str, done: int, total: int) -> None:
        if self._phase != (graph, phase):
            from tqdm import tqdm

            self._close()
            self._phase = (graph, phase)
            self._bar = tqdm(total=total, desc=f"{graph}: {phase}", disable=None, leave=False)
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __exit__(self, *_: object) -> None:
        self._close()
