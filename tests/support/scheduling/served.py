"""A server in a thread of its own, on a real socket, and its clients."""

from __future__ import annotations

import base64
import io
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from PIL import Image

from sts_export import Pipeline
from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.serving.api.app import create_app
from sts_export.serving.api.chat import PictureReader
from sts_export.serving.connections import ServerConfig
from sts_export.serving.pictures.reading import picture_bytes
from sts_export.serving.pictures.rules import PictureRules
from sts_export.serving.service import Engine, Service
from sts_export.serving.settings import Settings
from tests.support.mixed_requests import Opened
from tests.support.scheduling.gates import PATIENCE

MODEL = "random"
DATA_ONLY = PictureRules()


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    service: Service
    url: str

    def client(self, **options: Any) -> openai.OpenAI:
        usual = {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": PATIENCE}
        return openai.OpenAI(**{**usual, **options})

    def metric(self, name: str, **labels: str) -> float:
        """A sample's value now; 0 where it is not there yet."""
        from prometheus_client.parser import text_string_to_metric_families as families

        text = httpx.get(f"{self.url}/metrics", timeout=PATIENCE).text
        samples = [sample for family in families(text) for sample in family.samples]
        return sum(sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items())


@contextmanager
def running(service: Service, rules: PictureRules = DATA_ONLY) -> Iterator[Served]:
    """Until the block is left."""
    with running_with(service, lambda url: picture_bytes(url, rules)) as served:
        yield served


@contextmanager
def running_with(service: Service, picture: PictureReader) -> Iterator[Served]:
    """As :func:`running`, with pictures from where a test has them."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        app = create_app(service, picture)
        server = uvicorn.Server(ServerConfig(app, service.settings, drain=1))
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        try:
            yield Served(service, f"http://127.0.0.1:{sock.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join()


Start = Callable[..., Served]


@pytest.fixture
def start(opened: Opened) -> Iterator[Start]:
    """Start servers: name of a family, options of their scheduler and of their settings."""
    with ExitStack() as stack:

        def begin(pipeline: str | Pipeline = "llava", settings: Settings | None = None, **options: Any) -> Served:
            vlm = opened(pipeline) if isinstance(pipeline, str) else pipeline
            own = settings or Settings(MODEL)
            scheduler = stack.enter_context(Scheduler(vlm, **{"slots": 3, **options}))
            return stack.enter_context(running(Service(replace(own), Engine(vlm, scheduler))))

        yield begin


@pytest.fixture(scope="module")
def served(opened: Opened) -> Iterator[Served]:
    """LLaVA in three slots."""
    vlm = opened("llava")
    with Scheduler(vlm, slots=3) as scheduler, running(Service(Settings(MODEL), Engine(vlm, scheduler))) as found:
        yield found


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return served.client()


def data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def chat(prompt: Any, images: Any = None, **of_pictures: Any) -> Any:
    """Messages of OpenAI's form for what ``Pipeline.generate`` takes."""
    if not isinstance(prompt, str):
        return [dict(message) for message in prompt]
    given = [] if images is None else [images] if isinstance(images, Image.Image) else images
    pictures = [{"type": "image_url", "image_url": {"url": data_url(image), **of_pictures}} for image in given]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": prompt}]}]
