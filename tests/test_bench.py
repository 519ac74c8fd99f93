"""The benchmarks keep up with the server."""

from __future__ import annotations

from bench.attacks import device, groups, provider
from bench.attacks.inputs import covered_endpoints
from mimids.http.api.devices import DEVICES
from mimids.http.api.providers import PROVIDERS
from mimids.testing import PretendGroup


def test_every_endpoint_that_takes_a_body_is_attacked() -> None:
    """`python -m bench.abuse` said so only when somebody ran it."""
    small = groups.KnownGroup(groups.crowd_of(1, 2), groups.key())
    known = groups.Groups(small, small, (small, small), PretendGroup.at("a.example"))
    made = [*device.inputs("a.example", "b.example", "token", known), *provider.inputs("a.example", known)]
    assert covered_endpoints((*DEVICES, *PROVIDERS)) <= {each.endpoint for each in made}
