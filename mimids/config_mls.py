"""The section `[mls]`: code points that differ between deployments until IANA has assigned them."""

from __future__ import annotations

import attrs

from mimids.config_keys import SuiteCodePoints, key


@attrs.frozen(kw_only=True)
class MlsSettings:
    """Code points of MLS."""

    post_quantum_suites: SuiteCodePoints = key({})
