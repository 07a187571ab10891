"""Requests generated from the OpenAPI schema return documented responses and no internal errors."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from support.bundles import make_bundle
from support.server import serving
from support.waiting import HANG_S


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory, normal_priority: None) -> Iterator[schemathesis.BaseSchema]:
    """OpenAPI schema of a running service."""
    folder = tmp_path_factory.mktemp("schema")
    make_bundle(folder / "champion", patch=(64, 64))
    with serving(folder, model=folder / "champion") as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_generated_requests_return_documented_responses(schema: schemathesis.BaseSchema) -> None:
    tested = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        examples = 10 if operation.path == "/drift" else 60  # a report is a process

        @given(case=operation.as_strategy())
        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
        def send(case: schemathesis.Case) -> None:
            checks = (not_a_server_error, status_code_conformance, response_schema_conformance)
            case.call_and_validate(checks=checks, timeout=HANG_S)

        send()
        tested += 1
    assert tested >= 8
