"""A repair that was killed goes on to the same weights."""

import copy
import os
import random
import signal
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from backdoored import TARGET, loader_of, same, weights
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

import tacfast
from tacfast.defenses.training import Training
from tacfast.defenses.universal import CALM

repair = partial(tacfast.repair, mode="latent")

pytestmark = pytest.mark.usefixtures("one_thread")


class Augmented(Dataset):
    """Draws from every global generator for every image."""

    def __init__(self, images):
        self.images, self.labels = images.images, images.labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        noise = random.random() + np.random.rand() + torch.rand(()).item()  # noqa: NPY002
        return self.images[i] * (1 + 0.05 * noise), self.labels[i]


def loader(trial, kind):
    data = Augmented(trial.clean)
    generator = torch.Generator().manual_seed(11)
    if kind == "batch sampler":
        return DataLoader(
            data, batch_sampler=BatchSampler(RandomSampler(data, generator=generator), 48, drop_last=True)
        )
    options = {"plain": {}, "own generator": {"generator": generator}, "workers": {"num_workers": 2}}[kind]
    return DataLoader(data, batch_size=48, shuffle=True, **options)


class KilledError(Exception):
    pass


def killer(epoch):
    """Ends the repair after that epoch, and draws at random before, as a callback that measures something does."""

    def on_epoch(record):
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
        if record.epoch == epoch:
            raise KilledError

    return on_epoch


def kill_and_resume(trial, report, kind, path, at, **settings):
    """A new loader and a new copy of the model each time, as in a new process; returns the last result."""

    def run(**options):
        return repair(copy.deepcopy(trial.model), loader(trial, kind), report, resume=path, **settings, **options)

    for epoch in at:
        with pytest.raises(KilledError):
            run(on_epoch=killer(epoch))
        assert path.exists()
    torch.rand(1)
    return run()


@pytest.mark.parametrize(
    ("kind", "at"),
    [("plain", (1, 2, 4, 5)), ("own generator", (3,)), ("batch sampler", (2,)), ("workers", (1, 3))],
)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_and_resumed_gives_the_same_weights(trial, report, tmp_path, kind, at):
    settings = {"epochs": 5, "seed": 4, "targets": (TARGET, 4, 1)}  # no multiple of 3 steps an epoch
    if kind == "plain":
        settings["held_out"] = trial.data.subset(trial.splits.train[:100]).loader()
    whole = repair(trial.model, loader(trial, kind), report, **settings)
    resumed = kill_and_resume(trial, report, kind, tmp_path / "state", at, **settings)
    assert same(weights(whole.model), weights(resumed.model))
    assert resumed.history == whole.history
    assert (resumed.epoch, resumed.before, resumed.after) == (whole.epoch, whole.before, whole.after)
    assert list(tmp_path.iterdir()) == []


def test_the_kinds_of_loader_differ(trial, report):
    """Else the test above would say nothing about their generators."""
    results = [
        weights(repair(trial.model, loader(trial, kind), report, epochs=1).model) for kind in ("plain", "workers")
    ]
    assert not same(*results)


def test_the_best_epoch_so_far_is_remembered(trial, report, tmp_path):
    """Held-out labels such that the network gets worse and worse: the choice is of an epoch before the kill."""
    x, y = trial.clean.images[:60], trial.clean.labels[:60]
    wrong = [(x, (y + 1) % 6)] * 2

    def run(**options):
        settings = {"held_out": [(x, y)], "epochs": 8, "max_drop": 0.3, "targets": [TARGET], "lr": 0.01}
        return repair(trial.model, wrong, report, **settings, **options)

    whole = run()
    assert whole.epoch == 3
    with pytest.raises(KilledError):
        run(resume=tmp_path / "state", on_epoch=killer(6))
    resumed = run(resume=tmp_path / "state")
    assert resumed.epoch == whole.epoch
    assert same(weights(whole.model), weights(resumed.model))


def test_pruning_resumes(trial, report, tmp_path):
    settings = {"mode": "prune", "epochs": 4, "held_out": trial.data.subset(trial.splits.train[:100]).loader()}
    whole = repair(trial.model, loader(trial, "plain"), report, **settings)
    resumed = kill_and_resume(trial, report, "plain", tmp_path / "state", (2,), **settings)
    assert same(weights(whole.model), weights(resumed.model))
    assert resumed.pruned == whole.pruned != ()


def test_unlearning_a_perturbation_resumes(trial, report, tmp_path):
    settings = {"mode": "universal", "epochs": 4, "targets": (TARGET, 4)}
    whole = repair(trial.model, loader(trial, "plain"), report, **settings)
    resumed = kill_and_resume(trial, report, "plain", tmp_path / "state", (1, 3), **settings)
    assert same(weights(whole.model), weights(resumed.model))
    assert resumed.history == whole.history


def test_killed_in_a_second_training_the_first_is_not_done_again(trial, report, tmp_path, monkeypatch):
    """Where the first costs too much, the state of its end tells so until the second one has a state."""
    settings = {"mode": "universal", "epochs": 2, "lr": 0.5, "targets": (TARGET,), "max_drop": 0.0}
    settings["held_out"] = trial.data.subset(trial.splits.train[:100]).loader()
    epochs, run_epoch = [], Training._run_epoch

    def count(self):
        if len(epochs) == 2 and kill:
            raise KilledError
        epochs.append(self._settings.max_norm)
        return run_epoch(self)

    monkeypatch.setattr(Training, "_run_epoch", count)
    kill = False
    whole = repair(trial.model, loader(trial, "plain"), report, **settings)
    assert epochs == [None, None, CALM, CALM]
    epochs.clear()
    kill = True
    with pytest.raises(KilledError):
        repair(trial.model, loader(trial, "plain"), report, resume=tmp_path / "state", **settings)
    epochs.clear()
    kill = False
    resumed = repair(trial.model, loader(trial, "plain"), report, resume=tmp_path / "state", **settings)
    assert epochs == [CALM, CALM]
    assert same(weights(whole.model), weights(resumed.model))
    assert list(tmp_path.iterdir()) == []


def test_killed_after_the_last_epoch_nothing_is_trained_again(trial, report, tmp_path):
    whole = repair(trial.model, loader(trial, "plain"), report, epochs=2)
    with pytest.raises(KilledError):
        repair(
            trial.model,
            loader(trial, "plain"),
            report,
            epochs=2,
            resume=tmp_path / "s",
            on_epoch=killer(2),
        )
    seen = []
    resumed = repair(trial.model, loader(trial, "plain"), report, epochs=2, resume=tmp_path / "s", on_epoch=seen.append)
    assert seen == []
    assert same(weights(whole.model), weights(resumed.model))


SCRIPT = """
    import sys, time, torch
    sys.path[:0] = {tests!r}
    from tacfast import scan
    from test_defenses_resuming import loader, repair
    torch.set_num_threads(1)
    trial = torch.load({trial!r}, weights_only=False)
    report = scan(trial.model, trial.clean.loader())
    def on_epoch(record):
        if record.epoch == 3:
            print("three epochs", flush=True)
            time.sleep(600)
    repair(trial.model, loader(trial, "own generator"), report, epochs=6, resume={state!r}, on_epoch=on_epoch)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_process_killed_by_the_system_resumes(trial, report, tmp_path):
    path, folder = tmp_path / "state", Path(__file__).parent
    tests = [str(folder), str(folder.parents[1] / "helpers")]
    torch.save(trial, tmp_path / "trial")
    code = textwrap.dedent(SCRIPT).format(tests=tests, trial=str(tmp_path / "trial"), state=str(path))
    environment = os.environ | {"PYTHONPATH": str(folder.parents[2])}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "three epochs\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert path.exists()
    seen = []
    resumed = repair(trial.model, loader(trial, "own generator"), report, epochs=6, resume=path, on_epoch=seen.append)
    assert [record.epoch for record in seen] == [4, 5, 6]
    whole = repair(trial.model, loader(trial, "own generator"), report, epochs=6)
    assert same(weights(whole.model), weights(resumed.model))


@pytest.fixture
def state(trial, report, tmp_path):
    """A file left by a repair that was killed after its first epoch."""
    path = tmp_path / "state"
    with pytest.raises(KilledError):
        repair(trial.model, loader_of(trial), report, epochs=2, resume=path, on_epoch=killer(1))
    return path


def other_body(model):
    model = copy.deepcopy(model)
    with torch.no_grad():
        model[1].weight[0, 0] += 1e-3
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 3}, "with epochs 3, got one with 2 in .*; remove the file to start anew"),
        ({"lr": 0.2}, "with lr 0.2, got one with 0.1"),
        ({"seed": 1}, "with seed 1, got one with 0"),
        ({"targets": (4,)}, r"with targets \(4,\), got one with \(2,\)"),
        ({"model": other_body}, "with weights '.*', got one with '"),
        ({"loader": {"batch_size": 40}}, "with batches per epoch 9, got one with 8"),
        ({"held_out": True}, r"with held-out samples per class \(.*\), got one with None"),
        ({"mode": "prune", "held_out": True}, "with mode 'PruneRepair', got one with 'LatentRepair'"),
    ],
)
def test_the_state_of_another_repair_is_refused(trial, report, state, change, message):
    settings = {"epochs": 2} | change
    model = settings.pop("model", copy.deepcopy)(trial.model)
    batches = loader_of(trial, **settings.pop("loader", {}))
    if "held_out" in settings:
        settings["held_out"] = trial.clean.loader()
    content = state.read_bytes()
    with pytest.raises(ValueError, match=f"resume: expected the state of this repair {message}"):
        repair(model, batches, report, resume=state, **settings)
    assert state.read_bytes() == content


def test_a_loader_with_other_generators_is_refused(trial, report, state):
    own = loader_of(trial, generator=torch.Generator())
    with pytest.raises(ValueError, match="resume: expected a state that fits this loader and machine"):
        repair(trial.model, own, report, epochs=2, resume=state)


class Payload:
    def __reduce__(self):
        return (os.abort, ())


@pytest.mark.parametrize("content", ["nothing", "text", "cut", "code", "another", "list"])
def test_files_that_are_no_state_are_refused(trial, report, state, content):
    whole = state.read_bytes()
    if content in ("code", "another", "list"):
        torch.save({"code": Payload(), "another": nn.Linear(2, 2).state_dict(), "list": [1, 2]}[content], state)
    else:
        state.write_bytes({"nothing": b"", "text": b"not a state", "cut": whole[: len(whole) // 2]}[content])
    with pytest.raises(ValueError, match="resume: expected a file written by repair, got"):
        repair(trial.model, loader_of(trial), report, epochs=2, resume=state)


def test_the_folder_of_the_file_is_looked_for_before_any_training(trial, report, tmp_path):
    def never(record):
        raise AssertionError

    with pytest.raises(FileNotFoundError, match="resume: expected a file in an existing folder"):
        repair(trial.model, loader_of(trial), report, resume=tmp_path / "no" / "state", on_epoch=never)
    with pytest.raises(ValueError, match="resume: expected a file, got the folder"):
        repair(trial.model, loader_of(trial), report, resume=tmp_path, on_epoch=never)
