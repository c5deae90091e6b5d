"""Pictures that are bombs, no pictures, or ways to somewhere else."""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.serving.pictures.addresses import is_public
from sts_export.serving.pictures.fetching import fetched
from sts_export.serving.pictures.rules import PictureRules
from sts_export.serving.service import Engine, Service
from sts_export.serving.settings import Settings
from tests.serving.faults.answers import is_refused, is_well, post
from tests.serving.faults.bombs import asks, black_png, chunk, data, gif, half_a_jpeg
from tests.serving.pictures.fetches import Names, is_loopback
from tests.serving.pictures.servers import PictureServer, endless, head, sent, whole
from tests.support.mixed_requests import Opened
from tests.support.scheduling.gates import PATIENCE
from tests.support.scheduling.served import MODEL, Served, running, running_with

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "pixels": (lambda: black_png(30_000, 30_000), "pixels accepted"),
    "pixels-in-the-header-only": (lambda: black_png(1, 1).replace(struct.pack(">II", 1, 1), b"\x7f\xff\xff\xff" * 2), "image"),
    "strip": (lambda: black_png(60_000, 1), "strip"),
    "frames": (lambda: gif(2000), "animated"),
    "svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "not an image"),
    "eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n", "not an image"),
    "half": (half_a_jpeg, "truncated"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(served: Served, name: str) -> None:
    make, words = REFUSED[name]
    assert words in is_refused(post(served, asks(data(make()))))
    is_well(served)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_text_of_a_png_that_grows(served: Served, kind: bytes) -> None:
    """50 MB of it in 50 kB: the picture is one all the same."""
    start = b"a\0\1\0\0\0" if kind == b"iTXt" else b"a\0\0"
    content = black_png(8, 8, *[chunk(kind, start + zlib.compress(bytes(50_000_000), 9))] * 3)
    assert len(content) < 200_000
    assert post(served, asks(data(content))).status_code == 200
    is_well(served)


def test_more_pictures_than_fit_are_not_prepared(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file may be a picture of many megabytes, and a body holds thousands of them."""
    engine = served.service.engine
    assert engine is not None
    prepared, images = [], engine.pipeline._preprocessor.images
    prepare = type(images).prepare

    def counted(self: Any, image: Image.Image) -> Any:
        prepared.append(image.size)
        return prepare(self, image)

    monkeypatch.setattr(type(images), "prepare", counted)
    rows = engine.pipeline.manifest.capacities.rows[0]
    picture = data(black_png(8, 8))
    for count, most in ((rows, 2 * rows // 8 + 1), (4000, 0)):
        prepared.clear()
        assert "the prompt is too long" in is_refused(post(served, asks(*[picture] * count)))
        assert len(prepared) <= most
    is_well(served)


def test_pictures_that_are_too_many_pixels_together(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 million pixels in 8 kB each: refused before any of them is decoded."""
    loaded: list[bytes] = []
    monkeypatch.setattr("sts_export.requests.preprocessor.load_image", lambda source: loaded.append(source))
    picture = data(black_png(8000, 8000))
    line = is_refused(post(served, asks(*[picture] * 10)))
    assert "the first 3 pictures have 192000000 pixels together, more than the 128000000 accepted" in line
    assert not loaded
    monkeypatch.undo()
    is_well(served)


@pytest.fixture
def fetching(opened: Opened) -> Iterator[Callable[..., Served]]:
    """A server that fetches: its resolver and what it may connect to are the test's."""
    with ExitStack() as stack:

        def begin(reader: Callable[[str], bytes], **options: Any) -> Served:
            vlm = opened("llava")
            scheduler = stack.enter_context(Scheduler(vlm, slots=2))
            return stack.enter_context(running_with(Service(Settings(MODEL, **options), Engine(vlm, scheduler)), reader))

        yield begin


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "017700000001", "127.1", "[::1]", "[::ffff:127.0.0.1]",
     "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "169.254.169.254", "0.0.0.0", "a@127.0.0.1", "images.test"],
)  # fmt: skip
def test_no_way_to_this_machine(fetching: Callable[..., Served], host: str) -> None:
    names = Names(images_test=("127.0.0.1",), localhost=("127.0.0.1", "::1"))
    with PictureServer(whole(black_png(8, 8))) as inner:
        rules = PictureRules(hosts=("*", f"*:{inner.port}"))
        served = fetching(lambda url: fetched(url, rules, resolve=names, permitted=is_public))
        for port in ("", f":{inner.port}"):
            for scheme in ("http", "https"):
                is_refused(post(served, asks(f"{scheme}://{host}{port}/a.png")))
        is_well(served)
    assert inner.connections == 0


def test_redirects(fetching: Callable[..., Served]) -> None:
    """With the same server and a picture that is where it should be, so that the refusals mean something."""
    names = Names(images_test=("127.0.0.1",))
    with PictureServer(whole(black_png(8, 8))) as inner:
        there = sent(head(f"Location: http://127.0.0.1:{inner.port}/", "Content-Length: 0", status="302 Found"))
        with PictureServer(there) as outer:
            rules = PictureRules(hosts=(f"*:{outer.port}",))
            served = fetching(lambda url: fetched(url, rules, resolve=names, permitted=is_loopback))
            assert "redirect" in is_refused(post(served, asks(f"http://images.test:{outer.port}/")))
            is_well(served)
        assert inner.connections == 0
        rules = PictureRules(hosts=(f"*:{inner.port}",))
        served = fetching(lambda url: fetched(url, rules, resolve=names, permitted=is_loopback))
        assert post(served, asks(f"http://images.test:{inner.port}/")).status_code == 200


def test_files_outside_the_folder(opened: Opened, tmp_path: Path) -> None:
    folder, outside = tmp_path / "pictures", tmp_path / "secret.png"
    folder.mkdir()
    for file in (folder / "in.png", outside):
        file.write_bytes(black_png(8, 8))
    (folder / "link.png").symlink_to(outside)
    vlm = opened("llava")
    with Scheduler(vlm, slots=2) as scheduler:
        service = Service(Settings(MODEL), Engine(vlm, scheduler))
        with running(service, PictureRules(folder=folder)) as served:
            inside = folder.as_uri()
            lines = {
                is_refused(post(served, asks(url))).partition("' ")[2]
                for url in (outside.as_uri(), f"{inside}/../secret.png", f"{inside}/%2e%2e/secret.png", f"{inside}/link.png",
                            f"{inside}/none.png", "file:///etc/passwd", "file:///proc/self/environ", f"{inside}/in.png%00")
            }  # fmt: skip
            assert len(lines) == 1  # nobody learns what is there
            assert post(served, asks(f"{inside}/in.png")).status_code == 200
            is_well(served)


def test_files_are_not_collected_without_end(fetching: Callable[..., Served]) -> None:
    """URLs are short: twenty of them would be twenty times the limit."""
    read = []

    def large(url: str) -> bytes:
        read.append(url)
        return black_png(8, 8) + bytes(600_000)

    served = fetching(large, most_body=1 << 20)
    assert "1 MiB together" in is_refused(post(served, asks(*["http://images.test/a.png"] * 20)))
    assert len(read) == 2
    assert post(served, asks("http://images.test/a.png")).status_code == 200
    assert "send far fewer" in is_refused(post(served, asks(*["http://images.test/a.png"] * 4000)))
    assert len(read) == 3
    is_well(served)


def test_a_host_that_never_ends(fetching: Callable[..., Served]) -> None:
    names = Names(images_test=("127.0.0.1",))
    with PictureServer(endless(head("Content-Type: image/png"), bytes(65536))) as outer:
        rules = PictureRules(hosts=(f"*:{outer.port}",), most_bytes=1 << 20)
        served = fetching(lambda url: fetched(url, rules, resolve=names, permitted=is_loopback))
        assert "larger than 1 MiB" in is_refused(post(served, asks(f"http://images.test:{outer.port}/")))
        is_well(served)


def test_a_slow_host_holds_up_nobody(fetching: Callable[..., Served]) -> None:
    """Not even where more requests wait for it than there are processors."""
    over, waiting = threading.Event(), threading.Semaphore(0)

    def slow(url: str) -> bytes:
        waiting.release()
        assert over.wait(PATIENCE)
        return black_png(8, 8)

    served, count = fetching(slow), (os.cpu_count() or 1) + 1
    with ThreadPoolExecutor(count) as pool:
        slowed = [pool.submit(post, served, asks("http://images.test/")) for _ in range(count)]
        try:
            assert all(waiting.acquire(timeout=PATIENCE) for _ in range(count))
            is_well(served)
        finally:
            over.set()
        assert [future.result().status_code for future in slowed] == [200] * count
    is_well(served)
