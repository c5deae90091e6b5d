"""A request in the scheduler, as a coroutine sees it."""

from __future__ import annotations

import asyncio
import time
import weakref

import pytest

from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.requests.request import Request
from sts_export.serving.api.running import Running
from sts_export.serving.metrics import Metrics
from sts_export.serving.service import Service
from sts_export.serving.settings import Settings
from tests.support.mixed_requests import SQUARE, Opened
from tests.support.scheduling.gates import until


async def answered(scheduler: Scheduler, request: Request, *, given_up: bool) -> None:
    running = Running(scheduler, request, Metrics(Service(Settings("m"))), time.perf_counter())
    await (running.next() if given_up else running.finished())
    running.cancel()


@pytest.mark.parametrize("given_up", [False, True])
def test_pictures_of_an_answer_that_is_over_are_freed(opened: Opened, without_collector: None, given_up: bool) -> None:
    """At once: what waits for the collector adds up to hundreds of megabytes."""
    vlm = opened("llava")
    with Scheduler(vlm, slots=1) as scheduler:
        request = vlm.prepare("What?", SQUARE, ignore_eos=True)
        picture = weakref.ref(request.images[0])
        asyncio.run(answered(scheduler, request, given_up=given_up))
        until(lambda: scheduler.load.running == 0)
        del request
        until(lambda: picture() is None)
