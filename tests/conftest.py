"""Settings for all tests."""

from hypothesis import settings

# A shared machine stalls: how long one example takes says nothing about the code.
settings.register_profile("steersman", deadline=None)
settings.load_profile("steersman")
