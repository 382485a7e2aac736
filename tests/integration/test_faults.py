"""Trainings and grids killed by SIGKILL at random moments: what is lost, and that the outcome is the same."""

import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("safetensors")
pytest.importorskip("typer")
pytest.importorskip("jinja2")
pytest.importorskip("fcntl")

import small_grid
from processes import ENVIRONMENT, Process
from small_grid import DEFENCES, TINY, make_grid

from benchmarks.defence.cells import NETWORK_CELL, SCAN_CELL
from benchmarks.defence.store import Store

# The quick version runs by default, the thorough one with -m slow.
KILLS = [2, pytest.param(30, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]


def alive(group):
    """Processes of a group that are not zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


# ---- tacfast train --------------------------------------------------------------------------------------------


def train_command(out, epochs):
    settings = ["--arch", "small_preact_resnet", "--arch-args", '{"width": 8}', "--attack", "wanet", "--ratio", "0.1"]
    settings += ["--precision", "float32", "--batch-size", "32", "--epochs", epochs]
    return [sys.executable, "-m", "tacfast", "train", "--out", out, *settings]


def epochs_of(text):
    return [int(number) for number in re.findall(r"epoch (\d+): loss", text)]


@pytest.mark.parametrize("kills", KILLS)
def test_a_training_that_is_killed_loses_at_most_an_epoch(tmp_path, kills):
    draw, epochs = random.Random(kills), 15 if kills < 5 else 60
    whole, out = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    start = time.monotonic()
    first = Process(train_command(whole, epochs), tmp_path / "log")
    first.wait_for("epoch 1:")
    began = time.monotonic() - start
    assert first.finish(1000)
    per_epoch = (time.monotonic() - start - began) / (epochs - 1)
    assert epochs_of(first.text) == list(range(1, epochs + 1))
    done, killed = 0, 0
    while not out.with_suffix(".json").exists():
        process = Process(train_command(out, epochs), tmp_path / "log")
        if killed < kills:
            # A third of the moments fall into the start, the others into the epochs that follow.
            if draw.random() < 1 / 3:
                ended = process.finish(draw.uniform(0, began))
            else:
                process.wait_for("epoch", 1)
                ended = process.finish(draw.uniform(0, 2 * per_epoch))
            if not ended:
                process.kill()
                killed += 1
        else:
            assert process.finish(1000)
            assert process.popen.returncode == 0
        said = epochs_of(process.text)
        # What is said is saved: only the epoch that was under way, or was saved but not yet said, may differ.
        assert said == list(range(said[0], said[0] + len(said))) if said else True
        if said:
            assert said[0] in (done + 1, done + 2)
            done = said[-1]
    assert killed == kills or done == epochs
    assert killed >= min(kills, 2)
    assert out.read_bytes() == whole.read_bytes()
    left = {path.name for path in tmp_path.iterdir()} - {"log"}
    assert left - {f"{out.name}.state"} == {
        f"{name}.{kind}" for name in ("whole", "killed") for kind in ("json", "safetensors")
    }


def test_a_full_disk_ends_a_training_in_one_line(tmp_path):
    """No file may be larger than a few bytes, as where there is no room."""
    command = train_command(tmp_path / "net.safetensors", 1)

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=ENVIRONMENT, preexec_fn=limit
    )
    assert done.returncode == 1
    assert done.stderr.startswith("tacfast: error: ")
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# ---- the grid -------------------------------------------------------------------------------------------------


def cells_there(folder):
    store = Store(folder / "results")
    return {
        (network.name, name)
        for network in TINY.networks
        for name in (NETWORK_CELL, SCAN_CELL, *DEFENCES)
        if store.read(network.name, name) is not None
    }


@pytest.mark.slow  # a minute even for two kills
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kills", KILLS)
def test_a_grid_that_is_killed_loses_at_most_the_current_cells(tmp_path, kills, workers):
    draw, killed = random.Random(kills + workers), 0
    for number in range(kills):
        if killed < kills:
            killed += complete_with_kills(tmp_path / str(number), workers, kills - killed, draw)
    assert killed == kills


def complete_with_kills(folder, workers, kills, draw):
    """Run a grid again and again until it is complete; returns how often it was killed, at most ``kills`` times."""
    folder.mkdir()
    grid, command, killed = make_grid(folder), [sys.executable, small_grid.__file__, folder, workers], 0
    before, done = set(), []
    everything = {(network.name, name) for network in TINY.networks for name in grid.cells}
    while before != everything:
        process = Process(command, folder / "log")
        ended = False
        if killed < kills:
            if draw.random() < 0.3:
                ended = process.finish(draw.uniform(0, 6))
            else:
                process.wait_for("s0", draw.randint(1, 3))
                ended = process.finish(draw.uniform(0, 0.5))
            if not ended:
                process.kill()
                killed += 1
        else:
            ended = process.finish(600)
        assert process.popen.returncode == (0 if ended else -signal.SIGKILL), process.text
        deadline = time.monotonic() + 60
        while (orphans := alive(process.popen.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert orphans == []
        said = [tuple(each) for each in re.findall(r"(\S+): (\S+) done", process.text)]
        there = cells_there(folder)
        assert before <= there  # nothing that was complete is lost
        assert set(said) <= there
        assert before.isdisjoint(said)  # nor made again
        assert len(there) - len(before) - len(said) <= (0 if ended else workers)
        done += said
        before = there
    assert len(done) == len(set(done))  # no cell twice
    assert not any(grid.missing(network) for network in TINY.networks)
    return killed


def test_a_full_disk_ends_a_grid_in_one_line(tmp_path):
    command = [sys.executable, "-m", "benchmarks.defence", "--only", "clean", "--defences", "clp"]
    command += ["--results", str(tmp_path / "results"), "--models", str(tmp_path / "models")]

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, preexec_fn=limit)
    assert done.returncode == 1
    assert done.stderr.startswith("benchmarks.defence: error: ")
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "locks"]
