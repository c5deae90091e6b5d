"""README.md of a repository: its commands are ones that this model takes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from sts_export.triton.repository.page import table
from sts_export.triton.tensors import DTYPES, ENCODER_INPUTS, INPUTS, OUTPUTS, Tensor
from tests.triton.repository.helpers import MODEL, add_engines, write

KINDS = {"TYPE_STRING": "BYTES", "TYPE_BOOL": "BOOL", "TYPE_INT32": "INT32"}
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def readme(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return (write(origin / "bundle", tmp_path_factory.mktemp("r") / "r", with_encoder=True) / "README.md").read_text()


def code(readme: str, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(readme) if kind == language]


def test_nothing_is_left_of_the_template(readme: str) -> None:
    assert "@@" not in readme and "\n\n\n" not in FENCE.sub("code", readme) and readme.endswith(".\n")


def test_the_tables_are_the_tensors(readme: str) -> None:
    for one in (*INPUTS, *OUTPUTS, *ENCODER_INPUTS):
        assert f"| `{one.name}` | {one.kind[5:]} {list(one.dims)} | {one.meaning} |" in readme
    assert "| `x` | INT32 [-1] | y |" in table([Tensor("x", "TYPE_INT32", (-1,), "y")])


def test_the_client_sends_what_the_model_takes(
    readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program of the page runs, against a client that notes what it is given and answers at once."""
    grpc = pytest.importorskip("tritonclient.grpc")
    sent: list[tuple[str, Any]] = []

    class Answer:
        def __init__(self, text: bytes | None, final: bool) -> None:
            import numpy as np

            self.text = None if text is None else np.array([[text]], dtype=object)
            self.final = final

        def as_numpy(self, name: str) -> Any:
            assert name in [one.name for one in OUTPUTS]
            return self.text

        def get_response(self) -> Any:
            parameter = type("parameter", (), {"bool_param": self.final})
            return type("response", (), {"parameters": {"triton_final_response": parameter}})

    class Client:
        def __init__(self, url: str) -> None:
            assert url == "localhost:8001"

        def __enter__(self) -> Client:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def start_stream(self, callback: Any) -> None:
            self.callback = callback

        def async_stream_infer(self, model: str, inputs: Any, enable_empty_final_response: bool) -> None:
            assert enable_empty_final_response
            sent.append((model, inputs))
            for text, final in ((b"a ", False), ("ä".encode(), False), (None, True)):
                self.callback(Answer(text, final), None)

    monkeypatch.setattr(grpc, "InferenceServerClient", Client)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.jpg").write_bytes(b"\xff\xd8")
    (program,) = code(readme, "python")
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out == "a ä"
    ((model, inputs),) = sent
    assert model == MODEL
    known = {one.name: one for one in INPUTS}
    for item in inputs:
        assert item.datatype() == KINDS[known[item.name()].kind] and item.shape() == [1, 1]
    assert {"text_input", "image", "stream"} <= {item.name() for item in inputs}
    assert set(KINDS) <= set(DTYPES)


def test_the_shell_s_requests(readme: str, tmp_path: Path) -> None:
    """With a curl that prints what it is given: JSON whose fields are tensors, to models that are there."""
    (tmp_path / "bin").mkdir()
    curl = tmp_path / "bin" / "curl"
    curl.write_text('#!/usr/bin/env bash\nfor word; do case $word in http*) echo "$word" ;; esac; done\ncat\necho\n')
    curl.chmod(0o755)
    (tmp_path / "cat.jpg").write_bytes(b"\xff\xd8" * 100)
    script = "\n".join(text for text in code(readme, "sh") if "curl --silent" in text)
    environment = {"PATH": f"{curl.parent}:/usr/local/bin:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-euc", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    lines = [line for line in done.stdout.splitlines() if line]
    requests = [(lines[place], json.loads(lines[place + 1])) for place in range(0, len(lines), 2)]
    base = "http://localhost:8000/v2/models"
    assert [url for url, _ in requests] == [
        f"{base}/m/generate",
        f"{base}/m/generate_stream",
        f"{base}/m/generate",
        f"{base}/m-encoder/generate",
    ]
    for url, body in requests:
        inputs = ENCODER_INPUTS if "encoder" in url else INPUTS
        assert body.keys() <= {one.name for one in inputs}
    chat = requests[2][1]
    assert json.loads(chat["messages"])[0]["role"] == "user" and json.loads(chat["sampling_parameters"])["max_tokens"] > 0


def test_the_shell_s_commands_are_sound(readme: str, tmp_path: Path) -> None:
    checker = shutil.which("shellcheck", path=sysconfig.get_path("scripts")) or shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    script = tmp_path / "commands"
    script.write_text("#!/usr/bin/env bash\n" + "\n".join(code(readme, "sh")))
    subprocess.run([checker, str(script)], check=True)


def test_what_the_page_says_of_this_repository(origin: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(origin / "bundle", tmp_path / "bundle"))
    add_engines(bundle, max_batch=8)
    options = {"gpus": (0, 1), "slots": 5, "max_queue_size": 7, "longest_wait": 3.0, "allow_image_hosts": ("example.org",)}
    text = (write(bundle, tmp_path / "engines", **options) / "README.md").read_text()
    for said in ("tensorrt, on GPU 0, 1", "up to 5 requests", "up to 7 more", "3 s", "`example.org`", "## TensorRT"):
        assert said in text
    assert "first start builds" not in text and "m-encoder" not in text
    built = (write(bundle, tmp_path / "built", gpus=(0,), build_at_start=True) / "README.md").read_text()
    assert "The first start builds" in built and "-v m-engines:/models/m/1/bundle/engines" in built
    assert "The container has no plugins" in built
    rtx = write(bundle, tmp_path / "rtx", gpus=(0,), backend="tensorrt-rtx", build_at_start=True) / "README.md"
    assert "import tensorrt_rtx;" in rtx.read_text() and "takes no plugins" in rtx.read_text()
    cpu = (write(bundle, tmp_path / "cpu") / "README.md").read_text()
    assert "TensorRT" not in cpu.replace("sts-export triton", "") and "--gpus all" not in cpu
