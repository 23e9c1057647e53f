"""What `/openapi.json` says is what the server does: asked by a program that believes it."""

import contextlib
from collections import Counter

import pytest

from tests.serving.running import Running


def check_schema(server: Running, examples: int, seed: int) -> tuple[int, Counter]:
    """Requests made from the schema, good and bad: no 500, no status or body it does not name."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis.errors import Unsatisfiable
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    asked, statuses = 0, Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode:

            @seeded(seed)
            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case):
                nonlocal asked
                asked += 1
                statuses[case.call_and_validate(checks=checks, timeout=30).status_code] += 1

            with contextlib.suppress(Unsatisfiable):  # nothing about it can be wrong
                ask()
    return asked, statuses


def test_the_schema_is_kept(real):
    asked, statuses = check_schema(real, examples=20, seed=1)
    assert asked >= 40
    assert {200, 422} <= set(statuses), statuses


@pytest.mark.slow
def test_the_schema_is_kept_over_thousands_of_requests(real, capsys):
    asked, statuses = check_schema(real, examples=1000, seed=2)
    with capsys.disabled():
        print(f"{asked} requests: {dict(statuses)}")


def test_every_status_that_is_given_is_named(real):
    schema = real.client.get("/openapi.json").json()
    classify = schema["paths"]["/v1/classify"]["post"]
    named = set(classify["responses"])
    assert {"200", "400", "408", "413", "415", "422", "429", "500", "503", "504"} <= named
    kinds = set(classify["requestBody"]["content"])
    assert kinds == {"image/*", "application/octet-stream", "multipart/form-data"}
    assert "HTTPValidationError" not in schema["components"]["schemas"]
