"""Tokens of one layer on a plane: t-SNE (van der Maaten and Hinton, 2008), the same every time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_PERPLEXITY = 30.0
FEWEST = 5  # tokens


def on_a_plane(features: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """[tokens, C] -> [tokens, 2]; None with fewer than ``FEWEST`` tokens or where all are the same.

    Features have length 1 before, so that distances order tokens as cosines do.  It starts from the two main components, with
    seed 0 and on one thread: sums of several threads would differ from run to run.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(lengths > 0, lengths, 1)
    if len(unit) < FEWEST or np.ptp(unit, axis=0).max() < 1e-6:
        return None
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(_PERPLEXITY, (len(unit) - 1) / 3)
    with threadpool_limits(limits=1):
        places = TSNE(perplexity=perplexity, init="pca", random_state=0, n_jobs=1).fit_transform(unit)
    return np.asarray(places, np.float32)
