"""What all tests share: how thoroughly Hypothesis looks. Doubles and strategies have modules of their own.

HYPOTHESIS_PROFILE=ci finds the same in every run; `soak` looks longer than anybody wants to wait for.
"""

import os

from hypothesis import settings

# No deadline: a busy machine is not a fault of the code.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=100, print_blob=True)
settings.register_profile("soak", deadline=None, max_examples=10_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
