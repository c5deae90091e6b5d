"""The bundles and pipelines that these tests share."""

from tests.support.mixed_requests import opened
from tests.support.opened import bundle, checkpoint, spied, vlm

__all__ = ["bundle", "checkpoint", "opened", "spied", "vlm"]
