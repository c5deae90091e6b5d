"""From a bundle to a model that answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from PIL import Image

from sts_export.generation.pipeline import Pipeline
from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.serving.service import Engine


def load_engine(open_pipeline: Callable[[], Pipeline], open_scheduler: Callable[[Pipeline], Scheduler]) -> Engine:
    """Open both, and answer once, so that the first client does not wait for what an engine does at its first run.

    Raises:
        StsExportError: the bundle cannot be opened, or cannot answer.
    """
    with contextlib.ExitStack() as opened:
        pipeline = opened.enter_context(open_pipeline())
        scheduler = opened.enter_context(open_scheduler(pipeline))
        request = pipeline.prepare("What is this?", Image.new("RGB", (224, 224), "grey"), max_new_tokens=1)
        _ = scheduler.submit(request).result
        opened.pop_all()
    return Engine(pipeline, scheduler)
