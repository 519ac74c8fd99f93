"""Hypothesis profiles for all tests; shared helpers are in tests/support/.

HYPOTHESIS_PROFILE=ci makes runs repeatable; `soak` runs many more examples.
"""

import os

from hypothesis import settings

# No deadline: a test may be slow because the machine is busy.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=100, print_blob=True)
settings.register_profile("soak", deadline=None, max_examples=10_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
