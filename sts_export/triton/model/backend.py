"""``TritonPythonModel`` of the model that answers (README.md of github.com/triton-inference-server/python_backend)."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sts_export.errors import StsExportError
from sts_export.generation.pipeline import Pipeline
from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.serving.loading import load_engine
from sts_export.serving.measures import snapshot
from sts_export.triton.device import choose_gpu
from sts_export.triton.model.answering import Answering
from sts_export.triton.model.metrics import ModelMetrics
from sts_export.triton.settings import ModelSettings, read_parameters


class TritonPythonModel:
    """A bundle behind tensors (:mod:`sts_export.triton.tensors`).  Triton makes one of these for every instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle and answer once: only then is the model ready.

        Args:
            args: of Triton: ``model_config`` in JSON, ``model_repository``, ``model_version``, ``model_instance_name``,
                ``model_instance_kind`` and ``model_instance_device_id``.

        Raises:
            pb_utils.TritonModelException: the bundle cannot be run, in one line.
        """
        import triton_python_backend_utils as pb_utils

        choose_gpu(args, os.environ)
        given = json.loads(args["model_config"]).get("parameters", {})
        try:
            settings = read_parameters({key: value["string_value"] for key, value in given.items()})
            _ = settings.picture_rules  # before everything is loaded for nothing, and has metrics that would stay
            folder = settings.bundle_folder(Path(args["model_repository"]) / args["model_version"])
            engine = load_engine(lambda: _pipeline(folder, settings), lambda pipeline: _scheduler(pipeline, settings))
            labels = {"model": args["model_name"], "version": args["model_version"], "instance": args["model_instance_name"]}
            self._engine = engine
            self._metrics = ModelMetrics(pb_utils, labels, lambda: snapshot(engine.scheduler.load, engine.pipeline))
            self._answering = Answering(engine, settings, pb_utils, self._metrics)
        except StsExportError as error:
            raise pb_utils.TritonModelException(" ".join(str(error).split())) from None
        # What is there now stays: the collector would look through all of it again and again, and once more at the end.
        gc.collect()
        gc.freeze()
        load = engine.scheduler.load
        pb_utils.Logger.log_info(f"{labels['instance']}: {folder} on {engine.pipeline.backend_name}, {load.slots} slots")

    def execute(self, requests: Sequence[Any]) -> None:
        """Take requests; their responses come later, from other threads."""
        for request in requests:
            self._answering.take(request)

    def is_ready(self) -> bool:
        """Whether requests are answered; asked by releases of Triton that know it."""
        return self._answering.is_open

    def finalize(self) -> None:
        """Answer what was taken, and give everything back."""
        if hasattr(self, "_answering"):
            self._answering.close()
            self._metrics.close()
            self._engine.pipeline.close()


def _pipeline(folder: Path, settings: ModelSettings) -> Pipeline:
    return Pipeline(
        folder, threads=settings.threads or None, backend=settings.backend or None, feature_cache=settings.feature_cache
    )


def _scheduler(pipeline: Pipeline, settings: ModelSettings) -> Scheduler:
    return Scheduler(
        pipeline,
        slots=settings.slots,
        most_waiting=settings.slots + settings.max_queue_size,  # together with those in slots: Answering counts them
        longest_wait=settings.longest_wait or None,
        reuse_prefixes=settings.reuse_prefixes,
    )
