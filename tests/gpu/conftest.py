"""Without a CUDA device every test of this folder is skipped, and counted."""

import warnings

import pytest
import torch


@pytest.fixture(autouse=True)
def _needs_a_device():
    with warnings.catch_warnings():  # torch warns of a driver that is too old for it
        warnings.simplefilter("ignore")
        available = torch.cuda.is_available()
    if not available:
        pytest.skip("no CUDA device")
