"""The examples run, and say what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*command):
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_fine_pruning_by_shift():
    rows = re.findall(r"^(\w+) +([\d.]+) +([\d.]+) +([\d.]+) *(\d*)$", run(EXAMPLES / "fine_pruning_by_shift.py"), re.M)
    assert [row[0] for row in rows] == ["backdoored", "least_active", "largest_shift"]
    assert float(rows[0][2]) > 0.9
    assert all(float(row[1]) > 0.95 for row in rows)
    assert all(0 < int(row[4]) < 64 for row in rows[1:])


def test_two_processes():
    pytest.importorskip("torch.distributed.run")
    out = run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, EXAMPLES / "two_processes.py")
    together, alone = out.splitlines()
    assert together.startswith("2 processes, 1797 samples: ")
    assert alone.startswith("1 process,   1797 samples: ")
    norms = [[float(norm) for norm in line.split(": ")[1].split()] for line in (together, alone)]
    assert norms[0] == pytest.approx(norms[1], abs=2e-4)
    assert len(norms[0]) == 10
