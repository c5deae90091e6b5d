"""The generator against its definition in int64 arithmetic, and that it is one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.reference.pruning.random_keys import PRIME, random_key, random_keys

SEEDS = st.integers(-(2**63), 2**63 - 1)
WORDS = st.lists(st.integers(0, 2**16), min_size=1, max_size=4)


def in_int64(seed: int, words: list[int]) -> int:
    """As graphs compute it; numpy warns of an overflow, which the test settings make an error."""
    prime, step = np.int64(2**31 - 1), np.int64(10368889)

    def permute(x: np.int64) -> np.int64:
        square = x * x % prime
        return np.int64(square * square % prime * x % prime)

    x = np.int64(np.mod(np.int64(seed), prime - 1) + 1)
    for word in words:
        x = permute(np.int64((x + word + 1) % prime))
    for _ in range(2):
        x = permute(np.int64((x + step) % prime))
    return int(x // 128)


@settings(max_examples=200, deadline=None)
@given(SEEDS, WORDS)
def test_keys_fit_24_bits_and_need_no_more_than_int64(seed: int, words: list[int]) -> None:
    key = random_key(seed, words)
    assert key == in_int64(seed, words) and 0 <= key < 2**24


def test_keys_by_hand() -> None:
    """Seed 0 and one word: ((1 + w + 1)^5 + s)^5 and so on, without any reduction but at the end."""
    for word in (0, 1, 575):
        x = (1 + word + 1) ** 5
        x = ((x + 10368889) ** 5 + 10368889) ** 5
        assert random_key(0, [word]) == x % PRIME // 128


def test_seeds_and_words_matter_and_keys_are_spread() -> None:
    assert random_key(0, [1, 0, 5]) != random_key(1, [1, 0, 5])
    assert random_key(0, [1, 0, 5]) != random_key(0, [1, 1, 5]) != random_key(0, [2, 1, 5])
    assert random_key(PRIME - 1, [3]) == random_key(0, [3])  # seeds repeat only there
    keys = random_keys(7, [1, 0], range(576))
    assert len(set(keys.tolist())) == 576
    counts = np.bincount((keys.numpy() // 2**20).astype(int), minlength=16)
    assert counts.min() > 15 and counts.max() < 65  # 36 on average


def test_every_place_is_chosen_equally_often() -> None:
    """10 of 40 places with 400 seeds: each about 100 times."""
    chosen = np.zeros(40, dtype=int)
    for seed in range(400):
        chosen[np.argsort(-random_keys(seed, [1, 0], range(40)).numpy())[:10]] += 1
    assert chosen.min() > 60 and chosen.max() < 140
