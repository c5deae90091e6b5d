"""Every setting of a body reaches the request that the scheduler gets, also where an answer does not show it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from sts_export.requests.request import Request
from tests.support.scheduling.gates import PATIENCE
from tests.support.scheduling.served import MODEL, Served, chat

SETTINGS: dict[str, Any] = {
    "max_tokens": 3,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 9,
    "min_p": 0.25,
    "seed": 11,
    "ignore_eos": True,
    "stop": ["xyz"],
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.25,
    "logit_bias": {"5": -1.5},
}


@pytest.mark.parametrize(
    "path, asked", [("chat/completions", {"messages": chat("Where?")}), ("completions", {"prompt": "Where?"})]
)
def test_settings_reach_the_scheduler(
    served: Served, monkeypatch: pytest.MonkeyPatch, path: str, asked: dict[str, Any]
) -> None:
    assert served.service.engine is not None
    scheduler, submitted = served.service.engine.scheduler, list[Request]()
    submit = scheduler.submit

    def watched(request: Request, *args: Any) -> Any:
        submitted.append(request)
        return submit(request, *args)

    monkeypatch.setattr(scheduler, "submit", watched)
    body = {"model": MODEL, **asked, **SETTINGS}
    assert httpx.post(f"{served.url}/v1/{path}", json=body, timeout=PATIENCE).status_code == 200
    plain = {"model": MODEL, **asked, "max_tokens": 3}
    assert httpx.post(f"{served.url}/v1/{path}", json=plain, timeout=PATIENCE).status_code == 200
    request, without = submitted
    sampling, logits = request.sampling, request.logits
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed) == (0.7, 0.8, 9, 0.25, 11)
    assert request.ignore_eos and "xyz" in request.stop and request.max_new_tokens == 3
    assert (logits.presence_penalty, logits.frequency_penalty, logits.repetition_penalty) == (0.5, -0.5, 1.25)
    assert dict(logits.logit_bias or {}) == {5: -1.5}
    assert not without.ignore_eos and not without.sampling.temperature and without.sampling.min_p != 0.25
