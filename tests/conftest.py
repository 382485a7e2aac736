"""Settings that every test shares; helpers live in ``helpers/``, on the path of every test."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks, behind what is installed

settings.register_profile(
    "ci", derandomize=True, max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("ci"), derandomize=False, max_examples=400)
settings.register_profile("brief", settings.get_profile("ci"), phases=(Phase.explicit, Phase.generate))  # no shrinking
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture
def threads():
    """Call with a number of torch threads; the number before comes back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads):
    """For networks so small that more threads only get in one another's way."""
    threads(1)
