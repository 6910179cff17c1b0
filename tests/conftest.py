"""What all tests share."""

from hypothesis import settings

# Nothing is timed in a test, and a run of the suite is repeatable.
settings.register_profile("repository", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("repository")
