"""The section `[limits]` of the configuration: sizes, rates and quotas (semantics: limits-and-retention)."""

from __future__ import annotations

from typing import cast

import attrs

from mimids.config_keys import key


@attrs.frozen(kw_only=True)
class Limits:
    """Sizes, rates and quotas. Rates and quotas count for one device, user or provider; 0 means no limit.

    A provider has one such record, and a reload of the configuration replaces its values. So do not keep a value: read
    it from the record each time that it is needed.
    """

    # sizes
    max_body_bytes: int = key(16_777_216)
    message_bytes: int = key(4_194_304)
    group_info_bytes: int = key(8_388_608)
    welcome_bytes: int = key(8_388_608)
    key_package_bytes: int = key(65_536)
    receive_bytes: int = key(4_194_304)
    push_bytes: int = key(33_554_432)
    frame_bytes: int = key(4_194_304)
    ohttp_bytes: int = key(1_048_576)
    report_bytes: int = key(1_048_576)
    send_batch_messages: int = key(1024)
    welcome_providers: int = key(256)
    receive_wait_seconds: int = key(60, at_least=0)
    body_seconds: int = key(60)
    # rates
    device_requests_per_minute: int = key(6000, at_least=0)
    device_sends_per_second: int = key(100, at_least=0)
    device_sends_burst: int = key(2000)
    device_joins_per_hour: int = key(60, at_least=0)
    device_joins_burst: int = key(20)
    device_fetches_per_minute: int = key(60, at_least=0)
    device_fetches_burst: int = key(200)
    device_new_providers_per_day: int = key(50, at_least=0)
    user_sends_per_second: int = key(200, at_least=0)
    user_sends_burst: int = key(4000)
    user_joins_per_hour: int = key(120, at_least=0)
    user_joins_burst: int = key(40)
    user_fetches_per_minute: int = key(120, at_least=0)
    user_fetches_burst: int = key(400)
    provider_sends_per_second: int = key(2000, at_least=0)
    provider_sends_burst: int = key(20_000)
    provider_joins_per_hour: int = key(1000, at_least=0)
    provider_joins_burst: int = key(200)
    provider_new_providers_per_day: int = key(500, at_least=0)
    gateway_address_requests_per_second: int = key(100, at_least=0)
    gateway_address_requests_burst: int = key(500)
    gateway_requests_per_second: int = key(200, at_least=0)
    gateway_requests_burst: int = key(1000)
    # quotas
    device_streams: int = key(4, at_least=0)
    device_groups: int = key(1000, at_least=0)
    device_detached_partitions: int = key(16, at_least=0)
    device_branches: int = key(64, at_least=0)
    device_branch_bytes: int = key(67_108_864)
    device_bytes_per_day: int = key(4_294_967_296, at_least=0)
    device_bytes_burst: int = key(536_870_912, at_least=33_554_432)
    device_contact_tokens: int = key(1000, at_least=0)
    device_reports_per_day: int = key(20, at_least=0)
    provider_detached_partitions: int = key(256, at_least=0)
    provider_branches: int = key(1024, at_least=0)
    provider_branch_bytes: int = key(536_870_912)
    provider_bytes_per_day: int = key(68_719_476_736, at_least=0)
    provider_bytes_burst: int = key(4_294_967_296, at_least=33_554_432)
    provider_reports_per_day: int = key(200, at_least=0)
    provider_unmatched_bytes: int = key(16_777_216)

    def __getitem__(self, name: str) -> int:
        """Return the value of a key."""
        return cast("int", getattr(self, name))
