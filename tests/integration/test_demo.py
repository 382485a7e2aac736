"""The demo once, for real: train, scan, repair, on real images."""

import json

import pytest
import torch

from tacfast import cli

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")


def test_the_demo_keeps_its_promises(tmp_path, capsys):
    generator_state = torch.get_rng_state()
    threads = torch.get_num_threads()
    assert cli.main(["demo", "--seed", "100", "--out", str(tmp_path)]) == 0
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert torch.get_num_threads() == threads
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["verdict"] == "suspicious"
    assert report["found_class"] == report["poisoned_class"]
    assert report["before"]["asr"] >= 0.9
    assert report["after"]["asr"] <= 0.05
    assert report["before"]["acc"] - report["after"]["acc"] <= 0.03
    assert report["after"]["ra"] >= 0.7
    assert (tmp_path / "scores.png").stat().st_size > 10_000
    assert "suspicious" in capsys.readouterr().out


def test_a_clean_model_is_not_suspected(tmp_path):
    assert cli.main(["demo", "--clean", "--seed", "100", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["poisoned_class"] is report["found_class"] is report["after"] is None
    assert report["verdict"] in ("nothing_found", "borderline")  # one limit alone is often passed, and names no class
    assert report["before"]["asr"] < 0.1
