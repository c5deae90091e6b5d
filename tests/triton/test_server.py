"""The support's server by itself, with models of a few lines: the environment of models, both protocols, and every ending."""

from __future__ import annotations

import json
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest

from sts_export.testing.triton.server import PATIENCE, Triton, triton_server
from tests.support.triton.home import needs_triton

pytestmark = [needs_triton, pytest.mark.slow]
ROOT = Path(__file__).parents[2]

CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input {{ name: "text_input" data_type: TYPE_STRING dims: 1 }}
output {{ name: "text_output" data_type: TYPE_STRING dims: 1 }}
instance_group {{ kind: KIND_CPU count: 1 }}
"""
MODEL = """
import json
import sys

import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            text = triton.get_input_tensor_by_name(request, "text_input").as_numpy()[0].decode()
            sender = request.get_response_sender()
            for part in self.parts(text):
                output = triton.Tensor("text_output", np.array([part.encode()], dtype=np.object_))
                sender.send(triton.InferenceResponse([output]))
            if text != "endless":
                sender.send(flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
ECHO = """
    def parts(self, text):
        return text.split("|")
"""
ABOUT = """
    def parts(self, text):
        import onnxruntime, sts_export, sts_export.graphs, transformers
        modules = (np, sts_export, sts_export.graphs)
        yield json.dumps([np.__version__, sys.prefix, *(module.__file__ for module in modules)])
"""
BROKEN = """
    def initialize(self, args):
        raise RuntimeError("no weights in this model")
"""


def write(repository: Path, **models: str) -> Path:
    for name, methods in models.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(CONFIG.format(name=name))
        (repository / name / "1" / "model.py").write_text(MODEL + methods)
    return repository


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    repository = write(tmp_path_factory.mktemp("models") / "repository", echo=ECHO, about=ABOUT, broken=BROKEN)
    with triton_server(repository, models=["echo", "about"]) as found:
        yield found


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    return write(tmp_path / "repository", echo=ECHO)


def streamed(server: Triton, model: str, text: str, expected: int | None = None) -> list[str]:
    """The answers over gRPC, until the last one or ``expected`` of them."""
    import numpy as np
    import tritonclient.grpc as triton

    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    tensor = triton.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], dtype=np.object_))
    found: list[str] = []
    with triton.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer(model, [tensor], enable_empty_final_response=True)
        while len(found) != expected:
            result, error = answers.get(timeout=PATIENCE)
            assert error is None, error
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
            found.append(result.as_numpy("text_output")[0].decode())
        client.stop_stream(cancel_requests=expected is not None)
    return found


def generated(server: Triton, model: str, text: str) -> tuple[int, Any]:
    """Status and answer of Triton's generate endpoint over HTTP."""
    connection = HTTPConnection(server.http, timeout=PATIENCE)
    connection.request("POST", f"/v2/models/{model}/generate", json.dumps({"text_input": text}))
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_models_run_with_this_checkout_and_numpy_1(server: Triton, triton_home: Path) -> None:
    version, prefix, *files = json.loads("".join(streamed(server, "about", "")))
    assert version.startswith("1.26.")
    assert Path(prefix) == triton_home / "env"
    numpy, package, graphs = map(Path, files)
    assert numpy.is_relative_to(triton_home)
    assert package == ROOT / "sts_export" / "__init__.py"
    assert graphs == ROOT / "graphs" / "__init__.py"


def test_every_answer_of_a_stream_comes_in_order(server: Triton) -> None:
    assert streamed(server, "echo", "a|bé|c") == ["a", "bé", "c"]


def test_generate_answers_over_http(server: Triton) -> None:
    status, answer = generated(server, "echo", "é")
    assert (status, answer["text_output"]) == (200, "é")


def test_only_the_named_models_are_loaded(server: Triton) -> None:
    assert server.get("/v2/models/echo/ready") == 200
    assert server.get("/v2/models/broken/ready") == 400
    assert len(server.stubs) == 2
    assert {psutil.Process(pid).name()[:6] for pid in server.stubs} == {"triton"}


def test_metrics_are_summed_over_labels(server: Triton) -> None:
    before = server.metric("nv_inference_request_success", model="echo")
    streamed(server, "echo", "a")
    eventually(lambda: server.metric("nv_inference_request_success", model="echo") > before)
    assert server.metric("nv_inference_request_success") > before
    assert server.metric("nobody_counts_this") == 0


def test_a_stopped_server_leaves_nothing(echo: Path) -> None:
    with triton_server(echo, auto_complete=True) as server:
        (stub,) = server.stubs
        assert server.regions
        assert server.get("/v2/health/ready") == 200
    assert not psutil.pid_exists(server.pid) and not psutil.pid_exists(stub)
    assert server.regions == () and server.get("/v2/health/ready") == 0
    assert "successfully unloaded 'echo'" in server.log.read_text()


def test_a_killed_server_leaves_nothing(echo: Path) -> None:
    with triton_server(echo) as server:
        os.kill(server.pid, signal.SIGKILL)
    assert server.stubs == () and server.regions == ()


def test_a_server_that_crashes_fails_the_test(echo: Path) -> None:
    with pytest.raises(AssertionError, match="ended with -11, "), triton_server(echo) as server:
        os.kill(server.pid, signal.SIGSEGV)
        eventually(lambda: server.get("/v2/health/live") == 0)
    assert server.stubs == () and server.regions == ()


def test_a_failed_test_keeps_its_own_error(echo: Path) -> None:
    with pytest.raises(ZeroDivisionError), triton_server(echo) as server:
        raise ZeroDivisionError
    assert server.stubs == () and server.regions == ()


def test_a_model_that_does_not_load_ends_the_server(tmp_path: Path) -> None:
    repository = write(tmp_path / "repository", broken=BROKEN)
    with pytest.raises(AssertionError, match=r"ended with 1:\n(.|\n)*no weights in this model"), triton_server(repository):
        pass


def test_a_server_may_live_without_its_model(tmp_path: Path) -> None:
    repository = write(tmp_path / "repository", broken=BROKEN)
    with triton_server(repository, exit_on_error=False) as server:
        assert server.get("/v2/health/live") == 200
        assert server.get("/v2/health/ready") == 400


def test_an_answer_without_an_end_fails_the_test(echo: Path) -> None:
    with (
        pytest.raises(AssertionError, match="ended with 1, not by SIGTERM"),
        triton_server(echo, extra=["--exit-timeout-secs=1"]) as server,
    ):
        assert streamed(server, "echo", "endless", expected=1) == ["endless"]
    assert server.stubs == () and server.regions == ()


def test_what_is_left_after_an_ordinary_end_fails_the_test(echo: Path) -> None:
    with pytest.raises(AssertionError, match=r"tritonserver left /dev/shm/sts-\w+-forgotten"), triton_server(echo) as server:
        Path("/dev/shm", f"{server.name}forgotten").touch()
    assert server.regions == ()


def test_a_dead_stub_does_not_disturb_the_end(echo: Path) -> None:
    with triton_server(echo) as server:
        os.kill(server.stubs[0], signal.SIGKILL)
        eventually(lambda: server.stubs == ())
        assert server.get("/v2/health/live") == 200
    assert server.regions == ()
