"""One pipeline, many threads: the answers of a single thread, without an exception, whoever ends what when."""

from __future__ import annotations

import gc
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from sts_export import Pipeline
from sts_export.errors import BackendError, RequestError
from sts_export.requests.prompt import ChatTokenizer
from sts_export.testing.checkpoints import IMAGE_TOKEN, RandomLlava, random_image, write_random_llava
from tests.support.pipelines import export_to
from tests.support.tensorrt_backend import check_nothing_left, open_on

THREADS = 16
SETTINGS: dict[str, Any] = {"max_new_tokens": 2, "ignore_eos": True}
PICTURES = [random_image(seed, (60, 40)) for seed in range(3)]
WRITTEN = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where is <image>?"}]}]
REQUESTS: list[tuple[Any, Any]] = [
    ("What is it?", None),
    ("Where is the cat?", PICTURES[0]),
    (["How?", "Describe the table.", "the the"], [None, None, None]),
    ("What is on the picture?", PICTURES[1]),
    (["What?", "the picture of the cat"], [PICTURES[0], PICTURES[2]]),
    ("ASSISTANT", None),
    (WRITTEN, PICTURES[2]),
    ("the cat in the picture", None),
]


@pytest.fixture(autouse=True)
def hurried() -> Iterator[None]:
    """Threads change places as often as the interpreter lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 4 visual tokens and two layers."""
    folder = tmp_path_factory.mktemp("threads")
    spec = RandomLlava(image_size=28, layers=2, vision_layers=2, width=32, mlp=32, heads=2, head_dim=16, kv_heads=1)
    write_random_llava(folder / "checkpoint", spec)
    return export_to(
        folder / "checkpoint", folder / "bundle", keep=(3, 2), prune_layer=1, max_prompt_tokens=60, max_new_tokens=4
    )


def together(work: Callable[[int], None], threads: int = THREADS) -> None:
    """``work(number)`` in so many threads, which begin at the same time; the first exception of any is raised."""
    problems: list[BaseException] = []
    start = threading.Barrier(threads)

    def run(number: int) -> None:
        try:
            start.wait(60)
            work(number)
        except BaseException as error:
            problems.append(error)

    workers = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert not any(worker.is_alive() for worker in workers)
    if problems:
        raise problems[0]


def tokens_of(result: Any) -> Any:
    if isinstance(result, list):
        return [tokens_of(one) for one in result]
    return (result.token_ids, result.kept_stage1, result.kept_stage2, result.text)


def ask(pipeline: Pipeline, request: tuple[Any, Any]) -> Any:
    return tokens_of(pipeline.generate(*request, **SETTINGS))


def check_answers(pipeline: Pipeline, expected: list[Any], turns: int) -> None:
    def work(number: int) -> None:
        for turn in range(turns):
            index = (number + turn) % len(REQUESTS)
            assert ask(pipeline, REQUESTS[index]) == expected[index], REQUESTS[index]

    together(work)


def test_one_pipeline_for_all_threads(tiny: Path) -> None:
    """3200 requests: text, pictures, batches, image tokens written out."""
    with Pipeline(tiny, threads=1) as alone:
        expected = [ask(alone, request) for request in REQUESTS]
    assert len({str(one) for one in expected}) == len(REQUESTS)
    with Pipeline(tiny, threads=1) as pipeline:
        check_answers(pipeline, expected, turns=200)
        assert 1 <= len(pipeline._free_caches) <= 8


def test_engines_on_a_gpu(tiny: Path) -> None:
    """The same on fakes of TensorRT and CUDA, which report misuse."""
    with Pipeline(tiny, threads=1) as alone:
        expected = [ask(alone, request) for request in REQUESTS]
    opened = open_on(tiny)
    pipeline = opened.pipeline()
    check_answers(pipeline, expected, turns=25)
    assert 1 <= len(pipeline._free_caches) <= 8
    pipeline.close()
    check_nothing_left(opened.device)


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_abandoned_streams_are_collected_in_any_thread(tiny: Path, backend: str) -> None:
    """Generators in reference cycles, which the collector ends wherever it happens to run.

    Before it ends them it frees the GPU memory of their buffers, which are then not for the next request.
    """
    opened = open_on(tiny) if backend == "tensorrt" else None
    with Pipeline(tiny, threads=1) if opened is None else opened.pipeline() as pipeline:
        expected = ask(pipeline, REQUESTS[1])

        def work(number: int) -> None:
            for turn in range(5):
                stream: Any = pipeline.stream("What is it?", max_new_tokens=4, ignore_eos=True)
                next(stream)
                stream.myself = stream
                del stream
                if turn % 5 == number % 5:
                    gc.collect()
                assert ask(pipeline, REQUESTS[1]) == expected

        together(work, threads=8)
        gc.collect()
        assert 1 <= len(pipeline._free_caches) <= 8
    if opened is not None:
        check_nothing_left(opened.device)


def test_threads_that_read_one_stream(tiny: Path) -> None:
    """Every piece is read once, and the result is there for all."""
    with Pipeline(tiny, threads=1) as pipeline:
        for _ in range(20):
            stream = pipeline.stream("Where is the cat?", max_new_tokens=4, ignore_eos=True)
            pieces: list[str] = []

            def work(number: int, stream: Any = stream, pieces: list[str] = pieces) -> None:
                pieces.extend(stream)

            together(work, threads=4)
            assert sorted("".join(pieces)) == sorted(stream.result.text)
        stream = pipeline.stream("Where is the cat?", max_new_tokens=4, ignore_eos=True)
        together(lambda number: stream.close() if number % 2 else [*stream].clear(), threads=4)
        assert list(stream) == []


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_a_pipeline_closed_while_it_answers(tiny: Path, backend: str) -> None:
    """Answers are right or there is a BackendError; nothing else, and no buffers stay."""
    opened = open_on(tiny) if backend == "tensorrt" else None
    pipeline = Pipeline(tiny, threads=1) if opened is None else opened.pipeline()
    expected = ask(pipeline, REQUESTS[1])
    asked = threading.Semaphore(0)

    def work(number: int) -> None:
        if number == 0:
            for _ in range(8):
                asked.acquire(timeout=60)
            pipeline.close()
            return
        with pytest.raises(BackendError, match=r"was closed; open the bundle again$"):
            for _ in range(10_000):
                answer = ask(pipeline, REQUESTS[1])
                asked.release()
                assert answer == expected

    together(work, threads=8)
    assert len(pipeline._free_caches) == 0
    stream = pipeline.stream("What?")
    with pytest.raises(BackendError, match="was closed"):
        next(stream)
    with pytest.raises(RequestError):
        _ = stream.result
    if opened is not None:
        check_nothing_left(opened.device)


def test_a_tokenizer_with_settings_of_its_own(tiny: Path, tmp_path: Path) -> None:
    """Truncation and padding in tokenizer.json are turned off before threads share it: doing so while one encodes may fail."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    file = str(tmp_path / "tokenizer.json")
    backend = Tokenizer.from_file(file)
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(file)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"]
    expected = ChatTokenizer.open(tiny)
    long = "the cat on the table " * 500
    ids = expected.encode(expected.render(long, 1), IMAGE_TOKEN, [5]).tolist()
    for _ in range(5):
        tokenizer = ChatTokenizer.open(tmp_path)
        backend = tokenizer._tokenizer.backend_tokenizer
        assert backend.truncation is None and backend.padding is None

        def work(number: int, tokenizer: ChatTokenizer = tokenizer) -> None:
            for _ in range(3):
                assert tokenizer.encode(tokenizer.render(long, 1), IMAGE_TOKEN, [5]).tolist() == ids
                assert tokenizer.decode(ids) == expected.decode(ids)

        together(work)
