"""The nouns. Numpy and msgspec only: no I/O, no clock, no torch."""
