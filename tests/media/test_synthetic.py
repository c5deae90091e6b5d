"""Generated pictures."""

from __future__ import annotations

import numpy as np

from sts_export.media.synthetic import SIZES, synthetic_image


def test_generated_pictures() -> None:
    """The same for a seed, of several shapes, with much to see in them."""
    first = [synthetic_image(seed) for seed in range(5)]
    assert [image.size for image in first] == [*SIZES, SIZES[0]]
    for seed, image in enumerate(first):
        assert image.tobytes() == synthetic_image(seed).tobytes()
        assert np.asarray(image, np.float32).std() > 20
    assert first[0].tobytes() != first[4].tobytes()
