"""Stage 1's matrix of repulsions: both tiles give the same bits, and which of them is chosen."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from tests.plugins.kernels import FLAGS, HERE


@pytest.fixture(scope="module")
def program(kernel_library: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """programs/tile_check.cpp with the kernels of the other tests."""
    library = Path(kernel_library._name)
    target = tmp_path_factory.mktemp("tiles") / "tile_check"
    source = HERE / "programs" / "tile_check.cpp"
    flags = [*FLAGS, "-O1", "-ffp-contract=off", "-fsanitize=undefined", "-fno-sanitize-recover=undefined"]
    subprocess.run(["g++", *flags, source, library, f"-Wl,-rpath,{library.parent}", "-o", target], check=True, timeout=300)
    return target


def chosen_tile(program: Path, *sizes: int) -> int:
    return int(subprocess.check_output([str(program), *map(str, sizes)], text=True, timeout=60))


def test_both_tiles_give_the_same_bits(program: Path) -> None:
    """The matrix and the choices from it: every type, on the host and on the simulated device, dependent launches or not."""
    done = subprocess.run([program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.stdout == "done\n" and done.returncode == 0


@pytest.mark.parametrize(
    ("crops", "rows", "multiprocessors", "tile"),
    [
        (1, 576, 132, 24),  # 171 wide tiles are 1.3 a multiprocessor, 300 narrow ones 2.3
        (5, 576, 132, 32),  # narrow ones would save 4 %
        (1, 2880, 132, 32),
        (1, 4096, 132, 32),
        (1, 256, 132, 24),  # one tile each at most
        (1, 24, 132, 24),
        (1, 32, 1, 32),
        (1, 576, 1, 32),
        (1, 576, 0, 32),  # nobody knows
    ],
)
def test_the_tile_fills_the_device(program: Path, crops: int, rows: int, multiprocessors: int, tile: int) -> None:
    assert chosen_tile(program, crops, rows, multiprocessors) == tile


def test_a_narrow_tile_saves_a_tenth(program: Path) -> None:
    """By counting, for devices and shapes of many sizes: the pairs of the multiprocessor with most of the tiles."""
    shapes = [(1, 100, 7), (2, 577, 84), (3, 729, 108), (1, 1024, 132), (7, 196, 148), (1, 576, 20), (1, 1225, 188)]
    for crops, rows, multiprocessors in shapes:
        busiest = {}
        for tile in (24, 32):
            starts = range(0, rows, tile)
            tiles = crops * sum(1 for row in starts for column in starts if column >= row)
            shares = [0] * multiprocessors
            for number in range(tiles):
                shares[number % multiprocessors] += tile * tile
            busiest[tile] = max(shares)
        assert chosen_tile(program, crops, rows, multiprocessors) == (24 if busiest[24] <= 0.9 * busiest[32] else 32)
