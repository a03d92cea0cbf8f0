"""Whatever the schema allows, and what it does not, is sent to the real server: schemathesis makes it up.

Answers must be ones that the schema names, no 5xx but 503 and 504, and nothing illegal may be taken.
"""

import threading
from pathlib import Path

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from prometheus_client import CollectorRegistry
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from deploy.control.access import Access
from deploy.control.app import build_app
from deploy.control.run_status import CheckpointInfo
from deploy.run_folder.history import RunHistory

CHECKS = [
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]
UNASKED = build_app(
    None,
    access=Access("s", "r"),
    ending=threading.Event(),
    registry=CollectorRegistry(),
    history=RunHistory(Path("nowhere")),
    note=print,
    count=lambda route, status: None,
)
DOCUMENT = TestClient(UNASKED, base_url="http://localhost").get("/openapi.json").json()
schema = schemathesis.openapi.from_dict(DOCUMENT)
NO_LIMITS = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


def check(case, served):
    """One request, and its answer."""
    served.run.__init__()
    served.run.future.set_result(CheckpointInfo(step=9, url="memory://nine", age_s=0.0))
    response = case.call(base_url=served.url, headers=served.bearer, timeout=30)
    assert response.status_code < 500 or response.status_code in (503, 504), response.text
    case.validate_response(response, checks=CHECKS)


@schema.parametrize()
@settings(max_examples=5, derandomize=True, **NO_LIMITS)
def test_no_request_gets_an_answer_that_the_schema_does_not_name(case, served):
    check(case, served)


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=300, **NO_LIMITS)
def test_no_request_of_many_gets_an_answer_that_the_schema_does_not_name(case, served):
    check(case, served)
