"""The bundle and pipeline that these tests share."""

from tests.support.opened import bundle, checkpoint, spied, vlm

__all__ = ["bundle", "checkpoint", "spied", "vlm"]
