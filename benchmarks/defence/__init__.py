"""Attacks × defences on the paper's data: ``python -m benchmarks.defence``."""
