"""The library with ONNX Runtime: what it exports, which shapes it infers, what it refuses, and that it keeps no memory."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.plugins.onnxruntime.operator_models import LAST_TOKEN, REPULSION, Operator, operator_model, with_library
from tests.plugins.trt_build import REPOSITORY, run

pytestmark = pytest.mark.headers


def repulsion_feeds(crops: int = 2, rows: int = 10, steps: int = 5) -> dict[str, Any]:
    features = np.random.default_rng(0).standard_normal((crops, rows, 4)).astype(np.float32)
    return {
        "features": features,
        "first": np.arange(crops),
        "candidates": np.ones((crops, rows), bool),
        "quota": np.ones((crops, steps), bool),
    }


def last_token_feeds(rows: int = 9, visual: int = 5, keep: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "query": rng.standard_normal((1, 4, rows, 8)).astype(np.float32),
        "key": rng.standard_normal((1, 2, rows, 8)).astype(np.float32),
        "attention_mask": np.ones((1, rows), np.int64),
        "visual_mask": (np.arange(rows) < visual)[None],
        "visual_embeds": np.zeros((1, visual, 3), np.float32),
        "stage2_slots": np.zeros(keep, np.int64),
    }


def test_exports(library: Path) -> None:
    """Nothing that could meet the symbols of another library; no CUDA library is asked for."""
    if shutil.which("nm") is None or shutil.which("readelf") is None:
        pytest.skip("nm or readelf is absent")
    symbols = run(["nm", "-D", "--defined-only", library]).stdout.split()[2::3]
    assert sorted(symbols) == ["RegisterCustomOps", "stsDeviceRefusal", "stsOnnxRuntimeApiVersion", "stsOperatorsVersion"]
    needed = [line for line in run(["readelf", "-d", library]).stdout.splitlines() if "NEEDED" in line]
    assert needed and not any(name in line for line in needed for name in ("cuda", "onnxruntime", "nvinfer"))
    versions = ctypes.CDLL(str(library))
    assert (versions.stsOnnxRuntimeApiVersion(), versions.stsOperatorsVersion()) == (17, 1)


class _ApiBase(ctypes.Structure):
    _fields_ = [("get_api", ctypes.c_void_p), ("get_version", ctypes.c_void_p)]


def test_older_runtime(library: Path) -> None:
    """Fake of a runtime whose API ends at 16: it can only make errors."""
    said: list[tuple[int, str]] = []
    status = ctypes.create_string_buffer(8)

    def create_status(code: int, message: bytes) -> int:
        said.append((code, message.decode()))
        return ctypes.addressof(status)

    c_create_status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(create_status)
    api = (ctypes.c_void_p * 1)(ctypes.cast(c_create_status, ctypes.c_void_p))

    def get_api(version: int) -> int | None:
        return ctypes.addressof(api) if version <= 16 else None

    def get_version() -> int:
        return ctypes.addressof(name)

    name = ctypes.create_string_buffer(b"1.16.3")
    c_get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(get_api)
    c_get_version = ctypes.CFUNCTYPE(ctypes.c_void_p)(get_version)
    base = _ApiBase(ctypes.cast(c_get_api, ctypes.c_void_p), ctypes.cast(c_get_version, ctypes.c_void_p))
    register = ctypes.CDLL(str(library)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, ctypes.byref(base)) == ctypes.addressof(status)
    not_implemented = 9
    assert said == [(not_implemented, "sts: this ONNX Runtime is 1.16.3; the operators need 1.17 or later")]


def test_the_library_wins_over_the_function(library: Path) -> None:
    """A function of the same name that does something else: it runs where the library is absent, and only there."""
    names = list(REPULSION.inputs)
    body = [helper.make_node("Cast", ["quota"], ["chosen"], to=TensorProto.INT64)]
    opsets = [helper.make_opsetid("", 21)]
    function = helper.make_function("sts", "RepulsionSelect", names, ["chosen"], body, opsets, ["epsilon"])
    model, feeds = operator_model(REPULSION, functions=[function]), repulsion_feeds()
    assert with_library(model, None).run(None, feeds)[0].tolist() == [[1] * 5] * 2
    chosen = with_library(model, library).run(None, feeds)[0].tolist()
    assert [len(set(rows)) for rows in chosen] == [5, 5] and [rows[0] for rows in chosen] == [0, 1]
    with pytest.raises(Exception, match="RepulsionSelect"):
        with_library(operator_model(REPULSION), None)


def inferred(library: Path, operator: Operator, shapes: Mapping[str, Any]) -> list[Any]:
    """Shapes of the outputs, which the model does not give."""
    session = with_library(operator_model(operator, shapes=shapes), library)
    return [output.shape for output in session.get_outputs()]


def test_inferred_shapes(library: Path) -> None:
    assert inferred(library, REPULSION, {}) == [["crops", "steps"]]
    assert inferred(library, REPULSION, {"features": (3, 10, 4), "quota": ("c", 5)}) == [[3, 5]]
    assert inferred(library, LAST_TOKEN, {}) == [["batch", "(rows) - (visual) + (visual_keep)"], ["batch"]]
    numbers = {"attention_mask": (2, 60), "visual_embeds": ("b", 40, 7), "stage2_slots": (8,)}
    assert inferred(library, LAST_TOKEN, numbers) == [[2, 28], [2]]
    assert inferred(library, LAST_TOKEN, {**numbers, "stage2_slots": ("keep",)}) == [[2, "(60) - (40) + (keep)"], [2]]


def test_shapes_that_cannot_be_inferred(library: Path) -> None:
    """A dimension without a name, or a whole shape, is unknown: what follows from it is, too; the result is right."""
    for shapes in ({"quota": ("crops", None)}, {"quota": None}):
        session = with_library(operator_model(REPULSION, shapes=shapes), library)
        assert session.get_outputs()[0].shape in ([], None)
        assert session.run(None, repulsion_feeds())[0].shape == (2, 5)
    unknown = {"stage2_slots": (None,)}
    assert inferred(library, LAST_TOKEN, unknown)[1:] == [["batch"]]
    kept, last = with_library(operator_model(LAST_TOKEN, shapes=unknown), library).run(None, last_token_feeds())
    assert kept.shape == (1, 6) and last.tolist() == [5]


@pytest.mark.parametrize(
    ("operator", "arguments", "message"),
    [
        (REPULSION, {"attributes": {}}, 'RepulsionSelect: attribute "epsilon" is missing or is no float'),
        (REPULSION, {"attributes": {"epsilon": 1}}, 'RepulsionSelect: attribute "epsilon" is missing or is no float'),
        (REPULSION, {"attributes": {"epsilon": 0.0}}, '"epsilon" is 0; it must be finite and above 0'),
        (REPULSION, {"attributes": {"epsilon": float("nan")}}, '"epsilon" is nan; it must be finite and above 0'),
        (LAST_TOKEN, {"attributes": {"scale": float("inf")}}, '"scale" is inf; it must be finite and above 0'),
        (REPULSION, {"types": {"features": TensorProto.DOUBLE}}, "features must be float32, float16 or bfloat16"),
        (LAST_TOKEN, {"types": {"query": TensorProto.INT64}}, "query must be float32, float16 or bfloat16"),
        (LAST_TOKEN, {"types": {"key": TensorProto.FLOAT16}}, "key must have the type of query"),
        (REPULSION, {"types": {"first": TensorProto.INT32}}, "first"),
        (REPULSION, {"shapes": {"features": ("rows", "width")}}, "features has 2 dimensions; it needs 3"),
        (LAST_TOKEN, {"shapes": {"query": (1, 2, 3, 4, 5, 6)}}, "query has 6 dimensions; it needs 4"),
        (REPULSION, {"shapes": {"features": (2, 10, 4), "quota": (2, 11)}}, "do not fit together or are out of range"),
        (
            LAST_TOKEN,
            {
                "shapes": {
                    **{name: (1, heads, 9, 8) for name, heads in (("query", 4), ("key", 2))},
                    "visual_embeds": (1, 5, 3),
                    "stage2_slots": (7,),
                }
            },
            "do not fit together or are out of range",
        ),
        (REPULSION, {"shapes": {"quota": (2, 5), "first": (3,)}}, "dimension 0 of quota is 2; the other tensors need 3"),
    ],
)
def test_models_that_are_refused(library: Path, operator: Operator, arguments: Any, message: str) -> None:
    with pytest.raises(Exception) as refused:  # ONNX Runtime's own classes
        with_library(operator_model(operator, **arguments), library)
    lines = str(refused.value).splitlines()
    assert len(lines) == 1 and message in lines[0], lines


ANY_SHAPE = {operator.name: with_none for operator in (REPULSION, LAST_TOKEN) for with_none in [dict.fromkeys(operator.inputs)]}


@pytest.mark.parametrize(
    ("operator", "changes", "message"),
    [
        (REPULSION, {"first": np.zeros(3, np.int64)}, "dimension 0 of first is 3; the other tensors need 2"),
        (REPULSION, {"features": np.zeros((2, 10), np.float32)}, "features has 2 dimensions; it needs 3"),
        (REPULSION, {"features": np.zeros((2, 10, 0), np.float32)}, "do not fit together or are out of range"),
        (REPULSION, {"quota": np.ones((2, 11), bool)}, "do not fit together or are out of range"),
        (REPULSION, {"quota": np.ones((2, 0), bool)}, "do not fit together or are out of range"),
        (REPULSION, {"first": np.array(0)}, "first has 0 dimensions; it needs 1"),
        (LAST_TOKEN, {"stage2_slots": np.zeros(6, np.int64)}, "do not fit together or are out of range"),
        (LAST_TOKEN, {"visual_embeds": np.zeros((1, 10, 3), np.float32)}, "do not fit together or are out of range"),
        (LAST_TOKEN, {"key": np.zeros((1, 3, 9, 8), np.float32)}, "do not fit together or are out of range"),
        (LAST_TOKEN, {"key": np.zeros((1, 2, 8, 8), np.float32)}, "dimension 2 of key is 8; the other tensors need 9"),
    ],
)
def test_inputs_that_are_refused(library: Path, operator: Operator, changes: Any, message: str) -> None:
    """In one line; the session goes on working."""
    session = with_library(operator_model(operator, shapes=ANY_SHAPE[operator.name]), library)
    feeds = repulsion_feeds() if operator is REPULSION else last_token_feeds()
    right = [output.tolist() for output in session.run(None, feeds)]
    with pytest.raises(Exception, match=message) as refused:
        session.run(None, {**feeds, **changes})
    assert len(str(refused.value).splitlines()) == 1
    assert [output.tolist() for output in session.run(None, feeds)] == right


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc/self/statm: needs Linux")
def test_no_memory_is_kept(library: Path) -> None:
    """A workspace of 64 KiB a run: if it were kept, 64 MiB would be."""
    session, feeds = with_library(operator_model(REPULSION), library), repulsion_feeds(1, 128, 4)
    for _ in range(100):
        session.run(None, feeds)
    before = resident_bytes()
    for _ in range(1000):
        session.run(None, feeds)
    assert resident_bytes() - before < 16 << 20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc/self/statm: needs Linux")
def test_out_of_memory(library: Path) -> None:
    """Its run fails, in one line and with the words that the backend knows; the process lives, and so does the session."""
    code = (
        "import resource, sys, numpy as np; from pathlib import Path\n"
        "from tests.plugins.onnxruntime.operator_models import REPULSION, operator_model, with_library\n"
        "from tests.plugins.onnxruntime.test_library import repulsion_feeds\n"
        "session, feeds = with_library(operator_model(REPULSION), Path(sys.argv[1])), repulsion_feeds(64, 4096, 1)\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)\n"
        "try:\n    session.run(None, feeds)\n"
        "except Exception as error:\n    print(error)\n"
        "print(session.run(None, repulsion_feeds())[0].shape)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    message, shape = done.stdout.splitlines()
    assert "sts::RepulsionSelect: out of memory: 42" in message and message.endswith("bytes of workspace"), message
    assert shape == "(2, 5)"


def test_many_sessions(library: Path) -> None:
    """Each registers the library anew, and may end before the others."""
    model, feeds = operator_model(REPULSION), repulsion_feeds()
    sessions = [with_library(model, library) for _ in range(8)]
    expected = sessions[0].run(None, feeds)[0].tolist()
    del sessions[:4]
    assert all(session.run(None, feeds)[0].tolist() == expected for session in sessions)
    sessions.clear()
    assert with_library(model, library).run(None, feeds)[0].tolist() == expected


def test_threads_share_a_session(library: Path) -> None:
    """Each call has a workspace of its own."""
    session = with_library(operator_model(LAST_TOKEN), library)
    feeds = [last_token_feeds(rows, 30, 7) for rows in (40, 90, 200, 400)]
    alone = [[output.tolist() for output in session.run(None, own)] for own in feeds]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda index: session.run(None, feeds[index % 4]), range(80)))
    for index, outputs in enumerate(together):
        assert [output.tolist() for output in outputs] == alone[index % 4]
