"""`benchmarks/tiny_scan.py` on the digits: two processes come to the gap matrix of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

for module in ("typer", "safetensors", "sklearn"):
    pytest.importorskip(module)
if not Path("/proc/self/status").exists():
    pytest.skip("memory is read from /proc", allow_module_level=True)

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_whole_benchmark_runs_on_the_digits(tmp_path):
    train = [sys.executable, "-m", "tacfast", "train", "--data", "digits", "--arch", "small_preact_resnet"]
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, path))}
    network = tmp_path / "net.safetensors"
    subprocess.run([*train, "--epochs", "2", "--out", str(network)], check=True, env=environment)
    script = [sys.executable, str(ROOT / "benchmarks/tiny_scan.py"), "--checkpoint", str(network), "--data", "digits"]
    sizes = ["--images", "1001", "--batch", "64", "--threads", "1"]
    files = ["--work", str(tmp_path), "--out", str(tmp_path / "out.json")]
    subprocess.run([*script, *sizes, *files], check=True, env=environment)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["scan"]["samples"] == found["sizes"]["images"] == 1001
    two = found["two_processes"]
    assert two["samples"] == [1001, 1001]
    assert two["same_gap_matrix"] is True
    assert two["same_norms"] is True
    assert two["norms_differ_from_the_command_by"] < 1e-4
    assert found["scan"]["rule"] == "quick"
    timings = found["scan"]["timings"]
    assert timings["reading"] + timings["folding"] < timings["latents"] < timings["total"]
    parts = ("reading", "folding", "solve", "statistics", "stability")
    assert found["beyond_forward_accounted_for"] * found["forward_seconds"] == pytest.approx(
        sum(map(timings.get, parts))
    )
    assert 0 < found["scan"]["peak_mib"]["RssAnon"] < found["scan"]["peak_mib"]["VmHWM"]
