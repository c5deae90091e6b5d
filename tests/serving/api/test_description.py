"""The server keeps to its own OpenAPI description, whatever is sent: by schemathesis, which reads nothing else."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.serving.faults.answers import is_well
from tests.support.scheduling.served import MODEL, Served

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install 'schemathesis>=4.32'")

WITH_BODIES = ("/v1/chat/completions", "/v1/completions")
NOT_SO = ("positive_data_acceptance",)  # what is well-formed may still not fit into the bundle


def cases(served: Served, path: str, kind: str) -> Any:
    """Requests to an address; ``kind``: positive, as described, or negative."""
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    method = "POST" if path in WITH_BODIES else "GET"
    return schema[path][method].as_strategy(generation_mode=schemathesis.GenerationMode(kind))


def conform(case: Any) -> httpx.Response:
    """No status 5xx, and status, type and form of the response as described; a body that is not as described is refused."""
    left_out = schemathesis.checks.CHECKS.get_by_names(list(NOT_SO))
    response = case.call()
    case.validate_response(response, excluded_checks=left_out)
    return response  # type: ignore[no-any-return]


def many(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_BODIES)
def test_bodies_as_described(served: Served, path: str) -> None:
    """Asked of the server's model, since any text is a well-formed name of another one."""
    statuses = set()

    @many(100)
    @given(case=cases(served, path, "positive"))
    def ask(case: Any) -> None:
        case.body["model"] = MODEL
        statuses.add(conform(case).status_code)

    ask()
    assert statuses == {200, 400}
    is_well(served)


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_BODIES)
def test_bodies_that_are_not_as_described(served: Served, path: str) -> None:
    @many(150)
    @given(case=cases(served, path, "negative"))
    def ask(case: Any) -> None:
        assert 400 <= conform(case).status_code < 500

    ask()
    is_well(served)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/{name}", "/health", "/health/ready", "/metrics", "/version"])
def test_addresses_without_bodies(served: Served, path: str) -> None:
    @many(20)
    @given(case=cases(served, path, "positive"))
    def ask(case: Any) -> None:
        conform(case)

    ask()


def test_every_address_is_tested(served: Served) -> None:
    described = set(httpx.get(f"{served.url}/openapi.json").json()["paths"])
    others = {"/v1/models", "/v1/models/{name}", "/health", "/health/ready", "/metrics", "/version"}
    assert described == {*WITH_BODIES, *others}
