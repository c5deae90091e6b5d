"""What commands print where little can be printed: narrow encodings, closed and full streams, in processes of their own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sts_export.cli import main
from tests.cli.helpers import Work

BAD = os.fsdecode(b"b\xff")  # a name that is not UTF-8, as Python gets it


def process(
    arguments: list[str], *, python: list[str] | None = None, close: tuple[int, ...] = (), **settings: Any
) -> subprocess.CompletedProcess[bytes]:
    """Args: python: its options; close: descriptors that the process begins without."""

    def leave_closed() -> None:
        for number in close:
            os.close(number)

    environment = {**os.environ, **settings.pop("environment", {})}
    command = [sys.executable, *(python or []), "-m", "sts_export.cli", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
    return subprocess.run(
        command, env=environment, timeout=120, preexec_fn=leave_closed if close else None, check=False, **streams
    )


def printed(arguments: list[str], encoding: str, errors: str = "strict") -> bytes:
    """What ``main`` in this process writes to a standard output of an encoding."""
    before, buffer = sys.stdout, io.BytesIO()
    sys.stdout = io.TextIOWrapper(buffer, encoding, errors)
    try:
        assert main(arguments) == 0
        return buffer.getvalue()
    finally:
        sys.stdout = before


@pytest.fixture(scope="module")
def foreign(origin: Path) -> tuple[list[str], str]:
    """A command whose answer has characters beyond latin-1, and the answer."""
    for seed in range(20):
        arguments = ["run", str(origin / "bundle"), "--prompt", "What?", "--temperature=1", f"--seed={seed}", "--threads=1"]
        text = json.loads(printed([*arguments, "--json"], "ascii"))["text"]
        if any(ord(letter) > 255 for letter in text):
            return arguments, text
    raise AssertionError("no answer that is hard to print")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp437"])
def test_answers_are_printed_in_any_encoding(foreign: tuple[list[str], str], encoding: str) -> None:
    arguments, text = foreign
    assert printed(arguments, encoding) == (text + "\n").encode(encoding, "backslashreplace")
    assert json.loads(printed([*arguments, "--json"], encoding).decode("ascii"))["text"] == text


@pytest.mark.parametrize("how", ["PYTHONIOENCODING", "C locale"])
def test_a_process_of_its_own(foreign: tuple[list[str], str], how: str) -> None:
    arguments, text = foreign
    if how == "C locale":
        done = process(arguments, python=["-X", "utf8=0"], environment={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"})
    else:
        done = process(arguments, environment={"PYTHONIOENCODING": "latin-1:strict"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (text + "\n").encode("ascii" if how == "C locale" else "latin-1", "backslashreplace")


@pytest.mark.parametrize("close", [(1,), (2,), (0, 1, 2)], ids=str)
def test_closed_streams(work: Work, close: tuple[int, ...]) -> None:
    """The work is done all the same, and nothing that is opened gets the number of a standard stream."""
    target = Path(work.output)
    done = process(work.export(), close=close)
    expected = b"" if 1 in close else f"{target}: ".encode()
    assert done.returncode == 0 and done.stdout[: len(expected)] == expected and done.stderr == b""
    assert bool(done.stdout) == (1 not in close)
    assert main(["inspect", str(target), "--check"]) == 0


def test_an_answer_without_streams(work: Work) -> None:
    done = process(work.run("--max-new-tokens=2", "--threads=1"), close=(0, 1, 2))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("close", [(1,), (2,), (0, 1, 2)], ids=str)
def test_errors_with_closed_streams(work: Work, close: tuple[int, ...]) -> None:
    done = process(["inspect", str(work.folder / "none")], close=close)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == (2 not in close)


def test_descriptors_of_closed_streams_are_not_given_to_files(work: Work) -> None:
    """A library that reports on descriptor 2 would write into such a file."""
    code = (
        "import os, sys; from sts_export.cli import main; main(['inspect', sys.argv[1]]); "
        "kinds = [os.path.realpath(f'/proc/self/fd/{number}') for number in range(3)]; "
        "open(sys.argv[2], 'w').write(' '.join(kinds))"
    )
    target = work.folder / "kinds"

    def leave_closed() -> None:
        for number in range(3):
            os.close(number)

    command = [sys.executable, "-c", code, work.bundle, str(target)]
    assert subprocess.run(command, preexec_fn=leave_closed, timeout=60, check=False).returncode == 0
    assert target.read_text().split() == [os.devnull] * 3


FULL: dict[str, tuple[Callable[[Work], list[str]], int]] = {
    "inspect": (lambda w: ["inspect", w.bundle], 1),
    "inspect-json": (lambda w: ["inspect", w.bundle, "--json"], 1),
    "help": (lambda w: ["--help"], 1),
    "version": (lambda w: ["--version"], 1),
}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("case", FULL)
def test_a_full_disk(work: Work, case: str) -> None:
    arguments, code = FULL[case]
    with open("/dev/full", "wb") as full:
        done = process(arguments(work), stdout=full)
    assert done.returncode == code
    assert done.stderr == b"sts-export: [Errno 28] No space left on device; check disk and permissions\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_for_errors(work: Work) -> None:
    """Exit codes say what happened where nothing else can."""
    with open("/dev/full", "wb") as full:
        assert process(["inspect", str(work.folder / "none")], stderr=full).returncode == 2
        assert process(work.export("--dtype=bfloat16"), stderr=full).returncode == 0  # although its note gets lost
        assert process(["--help"], stdout=full, stderr=full).returncode == 1
    assert Path(work.output).is_dir()


def test_no_reader_for_errors(work: Work) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = process(["inspect", str(work.folder / "none")], stderr=closed)
    assert (done.returncode, done.stdout) == (2, b"")


# Names and arguments that are no text


def test_undecodable_arguments(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """One line in ASCII, whatever was typed."""
    picture = work.folder / f"{BAD}.png"
    picture.write_bytes(Path(work.picture).read_bytes())
    bundle = work.copy("bundle").rename(work.folder / BAD)
    cases: list[tuple[list[str], int, str]] = [
        (work.run(prompt=f"What {BAD}?"), 2, "lone surrogates"),
        (work.run("--system", BAD), 2, "lone surrogates"),
        (work.run(image=f"{BAD}.gif"), 2, "image 'b\\udcff.gif' does not exist"),
        (["inspect", str(bundle)], 2, "b\\udcff' cannot be used (it or a folder above it is not UTF-8); rename that"),
        (["run", str(bundle), "--prompt", "x"], 2, "is not UTF-8"),
        ([*work.export()[:-1], str(work.folder / "new" / BAD)], 2, "is not UTF-8"),
        (work.export(model=f"no-{BAD}"), 2, "is not UTF-8"),
        (work.export(f"--{BAD}"), 2, "unrecognized arguments: --b\\udcff"),
        (["inspect", work.bundle, f"--{BAD}\n"], 2, "unrecognized arguments: --b\\udcff"),
    ]
    for arguments, exit_code, said in cases:
        assert main(arguments) == exit_code, arguments
        line = capsys.readouterr().err
        assert line.startswith("sts-export: ") and line.count("\n") == 1 and line.isascii() and said in line, arguments
    assert not (work.folder / "new").exists()
    # Pictures and results may lie anywhere.
    target = work.folder / f"{BAD}-kept.png"
    assert main(["show", work.bundle, "--image", str(picture), "--prompt", "x", "-o", str(target), "--max-new-tokens=1"]) == 0
    assert target.is_file() and "b\\udcff-kept.png: 36 -> 18 -> 6 visual tokens" in capsys.readouterr().out
    done = process(["inspect", f"no-{BAD}"])
    assert (done.returncode, done.stdout) == (2, b"") and b"path 'no-b\\udcff' cannot be used" in done.stderr


def test_a_tensor_with_an_unprintable_name(work: Work) -> None:
    """From a file header: escapes on standard error."""
    file = (checkpoint := work.copy("checkpoint")) / "model.safetensors"
    save_file({**load_file(file), "adapté漢\n": torch.ones(1)}, file, metadata={"format": "pt"})
    done = process(work.export(model=checkpoint), environment={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1 and rb"adapt\xe9\u6f22" in done.stderr


# JSON that users give


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_chats_in_every_encoding_of_json(work: Work, capsys: pytest.CaptureFixture[str], encoding: str) -> None:
    chat = json.dumps([{"role": "user", "content": "Où est 漢?"}], ensure_ascii=False)
    arguments = ["--max-new-tokens=3", "--json"]
    assert main(["run", work.bundle, "--prompt", "Où est 漢?", *arguments]) == 0
    expected = json.loads(capsys.readouterr().out)
    file = work.write("chat.json", chat.encode(encoding))
    assert main(["run", work.bundle, "--messages", file, *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["token_ids"], found["prompt_tokens"]) == (expected["token_ids"], expected["prompt_tokens"])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_config_files_are_utf_8_as_for_transformers(work: Work, capsys: pytest.CaptureFixture[str], encoding: str) -> None:
    from transformers import AutoConfig

    file = (checkpoint := work.copy("checkpoint")) / "config.json"
    file.write_bytes(file.read_text(encoding="utf-8").encode(encoding))
    with pytest.raises((OSError, ValueError)):
        AutoConfig.from_pretrained(checkpoint)
    assert main(work.export(model=checkpoint)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "config.json is not valid JSON (" in said
    assert "BOM" in said or "utf-8" in said.lower()
