"""The real Triton takes what is written: config.pbtxt, files beside the models, and the layout; with models that only echo."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sts_export.testing.triton.server import PATIENCE, Triton, triton_server
from sts_export.triton.settings import ModelSettings, read_parameters
from sts_export.triton.tensors import INPUTS, OUTPUTS
from tests.support.triton.home import needs_triton
from tests.triton.repository.helpers import MODEL, write

pytestmark = [needs_triton, pytest.mark.slow]

# In the place of the model: says what it was started with, and what it is given.
ECHO = """
import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.parameters = {key: item["string_value"] for key, item in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        assert (folder / self.parameters["bundle"] / "manifest.json").is_file(), folder
        self.decoupled = triton.using_decoupled_model_transaction_policy(config)

    def answer(self, request):
        given = {tensor.name(): list(tensor.as_numpy().shape) for tensor in request.inputs()}
        text = json.dumps([self.parameters, given])
        return triton.InferenceResponse([triton.Tensor("text_output", np.array([[text.encode()]], dtype=np.object_))])

    def features(self):
        names = {"features": np.zeros((2, self.width), np.float32), "kept": np.arange(2, dtype=np.int32)}
        names["kept_counts"] = np.array([2], np.int32)
        return triton.InferenceResponse([triton.Tensor(*item) for item in names.items()])

    def execute(self, requests):
        if not self.decoupled:
            self.width = 8
            return [self.features() for request in requests]
        for request in requests:
            sender = request.get_response_sender()
            sender.send(self.answer(request), flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


@pytest.fixture(scope="module")
def served(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    repository = write(
        origin / "bundle", tmp_path_factory.mktemp("r") / "repository", with_encoder=True, slots=3, allow_image_hosts=("a.org",)
    )
    for model in (MODEL, f"{MODEL}-encoder"):
        (repository / model / "1" / "model.py").write_text(ECHO)
    with triton_server(repository) as server:
        yield server


def post(server: Triton, path: str, body: Any) -> Any:
    connection = HTTPConnection(server.http, timeout=PATIENCE)
    connection.request("POST", path, json.dumps(body))
    response = connection.getresponse()
    text = response.read().decode()
    assert response.status == 200, text
    return json.loads(text)


def test_all_models_are_ready(served: Triton) -> None:
    """And nothing else was taken for a model."""
    index = post(served, "/v2/repository/index", {})
    assert {(item["name"], item["state"]) for item in index} == {(MODEL, "READY"), (f"{MODEL}-encoder", "READY")}


def test_the_server_s_own_metadata(served: Triton) -> None:
    """Every tensor, with the batch's dimension that the server adds."""
    connection = HTTPConnection(served.http, timeout=PATIENCE)
    connection.request("GET", f"/v2/models/{MODEL}")
    metadata = json.loads(connection.getresponse().read())
    for tensors, key in ((INPUTS, "inputs"), (OUTPUTS, "outputs")):
        assert [(item["name"], item["shape"]) for item in metadata[key]] == [(one.name, [-1, *one.dims]) for one in tensors]


def test_settings_and_tensors_reach_the_model(served: Triton) -> None:
    """As the requests of the README give them."""
    body = {"text_input": "What?", "image": ["aaaa", "bbbb"], "max_tokens": 4, "stream": False}
    parameters, given = json.loads(post(served, f"/v2/models/{MODEL}/generate", body)["text_output"])
    expected = ModelSettings(backend="onnxruntime", slots=3, allow_image_hosts=("a.org",))
    assert read_parameters(parameters) == expected
    assert given == {"text_input": [1, 1], "image": [1, 2], "max_tokens": [1, 1], "stream": [1, 1]}
    _, given = json.loads(post(served, f"/v2/models/{MODEL}/generate", {**body, "image": "aaaa"})["text_output"])
    assert given["image"] == [1, 1]


def test_the_model_of_features_answers(served: Triton) -> None:
    grpc = pytest.importorskip("tritonclient.grpc")
    with grpc.InferenceServerClient(served.grpc) as client:
        image = grpc.InferInput("image", [2], "BYTES")
        image.set_data_from_numpy(np.array([b"a", b"b"], dtype=np.object_))
        result = client.infer(f"{MODEL}-encoder", [image])
    assert result.as_numpy("features").shape == (2, 8) and result.as_numpy("kept_counts").tolist() == [2]
