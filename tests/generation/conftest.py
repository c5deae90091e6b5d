"""The bundles and pipelines that these tests share."""

from tests.support.mixed_requests import opened
from tests.support.opened import bundle, checkpoint, spied, vlm
from tests.support.scheduling.gates import gated

__all__ = ["bundle", "checkpoint", "gated", "opened", "spied", "vlm"]
