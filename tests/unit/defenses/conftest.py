"""A backdoored network and its scan, made once for each file."""

import pytest
from backdoored import make_trial

from tacfast import scan


@pytest.fixture(scope="module")
def trial():
    return make_trial()


@pytest.fixture(scope="module")
def report(trial):
    return scan(trial.model, trial.clean.loader())
