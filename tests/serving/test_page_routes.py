"""The page as the server gives it, and what the server tells it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from sts_export.demo import PICTURES_DIR
from sts_export.families.capacities import Capacities
from sts_export.serving.page.files import page_file
from sts_export.serving.page.routes import keeps_all, most_pictures, offered_budgets
from sts_export.serving.service import Service
from sts_export.serving.settings import Settings
from tests.support.mixed_requests import FAMILIES, REQUESTS, SQUARE, WIDE, Opened
from tests.support.scheduling.served import MODEL, Start, chat, running


def test_the_page_and_its_files(start: Start) -> None:
    url = start().url
    index = httpx.get(f"{url}/")
    assert index.content == page_file("index.html")[0] and index.headers["content-type"].startswith("text/html")  # type: ignore[index]
    assert "default-src 'none'" in index.headers["content-security-policy"]
    for name in ("page.js", "page.css", "icon.svg"):
        assert httpx.get(f"{url}/page/{name}").content == page_file(name)[0]  # type: ignore[index]
    for path in (
        "page/routes.py",
        "page/../settings.py",
        "page/%2e%2e/settings.py",
        "page/examples/scene-0.png",
        "page/examples/..%2f",
    ):
        assert httpx.get(f"{url}/{path}").status_code == 404


def test_info(start: Start) -> None:
    settings = Settings(MODEL, api_keys=("one",), examples=PICTURES_DIR)
    url = start(settings=settings).url
    info = httpx.get(f"{url}/page/info").json()
    assert info["model"] == MODEL and info["key"] is True and info["max_pictures"] >= 2
    assert (info["budget"], info["budgets"]) == ("8", ["1", "2", "4", "8"])
    assert info["unpruned"] is False
    names = [example["name"] for example in info["examples"]]
    assert names == [file.name for file in sorted(PICTURES_DIR.glob("*.png"))][:12]
    assert httpx.get(f"{url}/{info['examples'][0]['src']}").content == (PICTURES_DIR / names[0]).read_bytes()


def test_while_the_model_is_loaded() -> None:
    with running(Service(Settings(MODEL))) as served:
        assert httpx.get(served.url).status_code == 200
        for path in ("page/info", "health/ready"):
            assert httpx.get(f"{served.url}/{path}").status_code == 503
        assert httpx.get(f"{served.url}/health").status_code == 200
        body = {"model": MODEL, "messages": chat("What?")}
        refused = httpx.post(f"{served.url}/v1/chat/completions", json=body)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "loading" and refused.headers["retry-after"]


@pytest.mark.parametrize("name", FAMILIES)
def test_offered_budgets_can_be_asked_for(opened: Opened, name: str) -> None:
    vlm = opened(name)
    budgets = offered_budgets(vlm.manifest)
    assert budgets[-1:] == ([] if vlm.manifest.pruning.budget is None else [vlm.manifest.pruning.budget])
    for budget in budgets:
        assert vlm.generate("What?", SQUARE, budget=budget, max_new_tokens=1).token_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_as_many_pictures_as_are_offered_can_be_sent(opened: Opened, name: str) -> None:
    """At least those that the bundle was exported for; few more fit, and nothing of the page's limit is in the way."""
    vlm = opened(name)
    most, room = most_pictures(vlm.manifest), vlm.manifest.capacities
    assert most >= room.visual_tokens // vlm.manifest.model.max_image_tokens
    assert vlm.prepare("What?", [SQUARE] * most).max_new_tokens >= 1


def test_pictures_of_the_demo_bundle() -> None:
    """The numbers of an export of the demo model at budget 64: 1120 and 1056 rows, 512 of which stay for text."""
    pruning = SimpleNamespace(keeps=lambda tokens: (96, 32) if tokens == 576 else ())
    decoder = SimpleNamespace(mrope_section=())
    model = SimpleNamespace(max_image_tokens=576, max_image_newlines=0, decoder=decoder, unpruned_positions=lambda _: False)
    room = Capacities(512, 512, 576, 0, (1120, 1056), 1120)
    assert most_pictures(cast(Any, SimpleNamespace(model=model, pruning=pruning, capacities=room))) == 6  # 608 / 96
    room = Capacities(512, 512, 576, 0, (1120, 600), 1120)
    assert most_pictures(cast(Any, SimpleNamespace(model=model, pruning=pruning, capacities=room))) == 2  # 88 / 32
    assert not keeps_all(cast(Any, SimpleNamespace(model=model, pruning=pruning)))
    assert keeps_all(cast(Any, SimpleNamespace(model=model, pruning=SimpleNamespace(keeps=lambda _: (576, 576)))))
    model.unpruned_positions = lambda _: True
    assert most_pictures(cast(Any, SimpleNamespace(model=model, pruning=pruning, capacities=room))) == 1  # 608 / 576


@pytest.mark.parametrize("index", [0, 3, 6])
def test_kept_tokens_come_with_the_first_chunk_and_the_end(start: Start, opened: Opened, index: int) -> None:
    prompt, images = REQUESTS[index]
    given = [] if images is None else [images] if images in (WIDE, SQUARE) else list(images)
    wanted = opened("llava").generate(prompt, given)
    client = start().client()
    asked: Any = {"model": MODEL, "messages": chat(prompt, given), "extra_body": {"return_kept": True}}
    whole = client.chat.completions.create(**asked)
    *told, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    first, *others = told
    assert all("sts" not in (chunk.model_extra or {}) for chunk in others)
    assert first.choices[0].delta.role == "assistant"
    assert first.model_extra["sts"] == {"pictures": last.model_extra["sts"]["pictures"]}
    for answer in (whole, last):
        own = answer.model_extra["sts"]
        assert own["timings_ms"]["first_token"] > 0
        pictures = own["pictures"]
        assert [(one["width"], one["height"]) for one in pictures] == [image.size for image in given]
        assert [one["stage1"] for one in pictures] == wanted.kept_stage1
        tokens = opened("llava").manifest.model.max_image_tokens
        stage2 = [place * tokens + token for place, one in enumerate(pictures) for token in one["stage2"]]
        assert stage2 == wanted.kept_stage2
    plain = client.chat.completions.create(**{**asked, "extra_body": {}})
    assert "sts" not in (plain.model_extra or {})
