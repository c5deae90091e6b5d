"""`sts-export serve` in a process of its own: from start to end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from sts_export.cli.commands.serve import action, make_parser
from sts_export.errors import RequestError
from tests.support.mixed_requests import SQUARE, Opened
from tests.support.scheduling.gates import PATIENCE
from tests.support.scheduling.processes import started
from tests.support.scheduling.served import chat


@pytest.fixture(scope="module")
def bundle(opened: Opened) -> Path:
    return opened("llava").bundle.folder


@pytest.fixture
def command(bundle: Path) -> list[str]:
    return [sys.executable, "-m", "sts_export.cli", "serve", str(bundle), "--port", "0", "--threads", "1", "--model-name", "m"]


def ask(address: str, **settings: Any) -> Any:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
    return client.chat.completions.create(model="m", messages=chat("What?", SQUARE), **settings)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_answers_and_ends_in_order(command: list[str], opened: Opened, number: signal.Signals) -> None:
    """An answer that is under way when the signal comes is still completed."""
    with started([*command, "--slots", "2"]) as (process, address):
        assert ask(address).choices[0].message.content == opened("llava").generate("What?", SQUARE).text
        assert httpx.get(f"{address}/health", headers={"Host": "evil.test"}).status_code == 400
        stream = iter(ask(address, stream=True, extra_body={"ignore_eos": True}))
        chunks = [next(stream), next(stream)]
        process.send_signal(number)
        chunks += list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None and "Traceback" not in process.stderr.read()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")


@pytest.mark.slow
def test_killed_and_started_again_at_the_same_port(command: list[str]) -> None:
    with started(command) as (process, address):
        wanted = ask(address).choices[0].message.content
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    command[command.index("--port") + 1] = address.rsplit(":", 1)[1]
    with started(command) as (_, again):
        assert again == address and ask(again).choices[0].message.content == wanted


def fails(command: list[str], code: int = 2) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (code, "") and "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.slow
def test_a_bundle_that_is_damaged_or_missing(command: list[str], bundle: Path, tmp_path: Path) -> None:
    """One line, also where what is wrong shows only when the engine is loaded."""
    command[command.index(str(bundle))] = str(tmp_path / "none")
    assert fails(command).count("\n") == 1
    broken = Path(shutil.copytree(bundle, tmp_path / "broken", symlinks=True))
    command[command.index(str(tmp_path / "none"))] = str(broken)
    graph = next(broken.rglob("llm_upper*.onnx"))
    graph.write_bytes(graph.read_bytes()[:1000])
    *log, last = fails(command).strip().splitlines()
    assert last.startswith("sts-export: ") and all(json.loads(line)["level"] != "error" for line in log)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--slots", "0"], "--slots"),
        (["--slots", "2", "--memory", "1GiB"], "not allowed with"),
        (["--memory", "1KiB"], "KV caches of one request"),
        (["--memory", "much"], "size"),
        (["--most-waiting", "-1"], "--most-waiting"),
        (["--most-connections", "0"], "--most-connections"),
        (["--longest-wait", "0"], "--longest-wait"),
        (["--longest-wait", "nan"], "--longest-wait"),
        (["--page-examples", "/no/such/folder"], "'/no/such/folder' is no folder"),
        (["--allow-image-hosts", "a.test", "b.test"], "unrecognized arguments: b.test"),
        (["--drain", "-1"], "--drain"),
        (["--feature-cache", "-1"], "size"),
        (["--max-body", "0"], "most_body"),
        (["--port", "99999"], "port"),
        (["--host", "no.such.host.invalid"], "--host"),
        (["--allowed-hosts", "http://a.test"], "is no host to be asked by"),
        (["--allowed-hosts"], "--allowed-hosts"),
        (["--api-key-file", "none.txt"], "none.txt"),
        (["--threads", "0"], "threads"),
    ],
)
def test_wrong_options(command: list[str], options: list[str], words: str) -> None:
    line = fails([*command, *options])
    assert line.count("\n") == 1 and words in line


def test_what_is_wrong_is_said_before_the_model_is_loaded(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any) -> None:
        raise AssertionError("the server was started")

    monkeypatch.setattr("sts_export.serving.server.serve", loaded)
    for options in (["--longest-wait", "0"], ["--page-examples", str(bundle / "manifest.json")], ["--page-examples", "none"]):
        with pytest.raises(RequestError, match=r"longest-wait|no folder"):
            action(make_parser().parse_args([str(bundle), *options]))


def test_lists_of_hosts_leave_the_bundle() -> None:
    given = ["--allow-image-hosts", "a.test", "--allowed-hosts", "c.test", "BUNDLE", "--allow-image-hosts", "b.test"]
    args = make_parser().parse_args(given)
    assert (args.bundle, args.allow_image_hosts, args.allowed_hosts) == ("BUNDLE", ["a.test", "b.test"], ["c.test"])
    args = make_parser().parse_args(["BUNDLE"])
    assert (args.allow_image_hosts, args.allowed_hosts) == ([], None)


def test_a_port_in_use(command: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        line = fails([*command, "--port", str(sock.getsockname()[1])])
    assert line.count("\n") == 1 and "--port" in line


@pytest.mark.parametrize("content, words", [("", "no API key"), ("# only\n\n", "no API key"), ("a b", "key 1"), ("ä", "key 1")])
def test_key_files(command: list[str], tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content, encoding="utf-8")
    line = fails([*command, "--api-key-file", str(file)])
    assert line.count("\n") == 1 and words in line


@pytest.mark.slow
def test_memory_keys_and_hosts(command: list[str], tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# mine\nkey-1\n")
    with started([*command, "--memory", "1MiB", "--api-key-file", str(file), "--allowed-hosts", "127.0.0.1"]) as (_, address):
        text = httpx.get(f"{address}/metrics").text
        assert httpx.get(f"{address}/v1/models").status_code == 401
        assert httpx.get(f"{address}/v1/models", headers={"Authorization": "Bearer key-1"}).status_code == 200
        assert httpx.get(f"{address}/health", headers={"Host": "localhost"}).status_code == 400
    slots = float(next(line.split()[1] for line in text.splitlines() if line.startswith("sts_num_slots ")))
    assert slots > 1


_WITHOUT = """
import sys
sys.modules["fastapi"] = None
from sts_export.cli import main
sys.exit(main(["serve", "anything"]))
"""


def test_without_the_extra() -> None:
    line = fails([sys.executable, "-c", _WITHOUT])
    assert line == "sts-export: fastapi is not installed; pip install 'sts-export[serve]'\n"


def test_help_needs_no_extra() -> None:
    code = _WITHOUT.replace('"anything"', '"--help"')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0 and "--slots" in done.stdout
