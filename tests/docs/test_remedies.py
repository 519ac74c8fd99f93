"""What a device does about each problem: docs/http.md says it, and the client library does it."""

from __future__ import annotations

import pytest

from docs.generate.remedies import REMEDIES, Again
from mimids.client import Problem
from mimids.errors import MimiError, every_error


def test_each_problem_has_a_remedy() -> None:
    assert set(REMEDIES) == set(every_error())


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.code)
def test_the_client_library_repeats_what_the_document_says(kind: type[MimiError]) -> None:
    again, _ = REMEDIES[kind]
    refused = Problem(kind.status.value, {"type": kind.problem_type()})
    assert refused.is_temporary == (again is Again.LATER)
