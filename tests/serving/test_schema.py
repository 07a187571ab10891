"""Whatever the OpenAPI schema allows, and much that it does not: no fault of the service, no undocumented answer."""

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from droneseg.core.settings import Settings
from droneseg.serving.api import create_app
from support.segmenters import BrightIsLanding

APP = create_app(Settings(_env_file=None, records_url="none"), BrightIsLanding())
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)


@SCHEMA.parametrize()
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_requests_find_no_fault(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=(not_a_server_error, status_code_conformance, response_schema_conformance))
