"""Whatever the schema allows, and what it does not, is sent to the real server: schemathesis makes it up.

Answers must be ones that the schema names, no 5xx but 503 and 504, and nothing illegal may be taken.
"""

from concurrent.futures import Future

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

CHECKS = [
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]
BUSY = {503, 504}
"""Legal, and documented: the checkpoint that nobody writes is not there in time."""


@pytest.fixture(scope="session")
def document(one_server):
    return httpx2.get(f"{one_server.url}/openapi.json", trust_env=False).json()


@pytest.fixture(scope="session")
def described(one_server, document):
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=one_server.url)
    return schema


def check(case, served):
    """One request and its answer."""
    served.run.__init__()
    served.run.future = Future()
    served.run.future.set_exception(TimeoutError())
    response = case.call(headers=None if case.meta is None else served.bearer, timeout=30)
    if response.status_code not in BUSY:
        not_a_server_error(None, response, case)
    case.validate_response(response, checks=CHECKS)


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_gets_an_answer_that_the_schema_does_not_name(case, served):
    check(case, served)
