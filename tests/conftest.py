"""What all tests share: the same examples on every machine, however slow it is."""

from hypothesis import settings

settings.register_profile("qwenft", deadline=None, derandomize=True)
settings.load_profile("qwenft")
