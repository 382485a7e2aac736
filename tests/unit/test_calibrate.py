"""The bank of networks: what is in it, what is kept of one, and how rules are judged from that."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

pytest.importorskip("sklearn")
pytest.importorskip("safetensors")
pytest.importorskip("typer")
pytest.importorskip("jinja2")
pytest.importorskip("fcntl")

from _grid import BADNETS, CLEAN, TINY
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from benchmarks.calibrate import __main__ as command
from benchmarks.calibrate.bank import BANK
from benchmarks.calibrate.judge import Member, auroc, judge, limit_of, load, surprise
from benchmarks.defence.profiles import PROFILES
from tacfast.attacks import ATTACKS
from tacfast.data import load_dataset
from tacfast.detection.outliers import outlier_scores
from tacfast.models import extract_latents
from tacfast.solver import solve_tac
from tacfast.training.trained import load_trained

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- the bank ------------------------------------------------------------------------------------------------


def test_the_bank_has_what_a_threshold_needs():
    networks = BANK.networks
    assert len({network.name for network in networks}) == len(networks)
    assert sum(network.attack == "clean" for network in networks) >= 0.4 * len(networks)
    assert {network.attack for network in networks} == {"clean", *ATTACKS}
    assert {network.ratio for network in networks} == {0.0, 0.01, 0.05, 0.1}
    assert len({network.arch for network in networks}) >= 4
    assert {network.data for network in networks} == {"digits", "fashion-mnist", "cifar10", "gtsrb"}


def test_networks_of_the_grid_of_defences_are_the_same_networks():
    small = PROFILES["paper-small"]
    shared = [network for network in small.networks if network in BANK.networks]
    assert len(shared) == sum(network.data != "tinyimagenet" for network in small.networks)
    assert all(BANK.plan(network) == small.plan(network) for network in shared)


# ---- what is kept --------------------------------------------------------------------------------------------


def run(*arguments):
    result = CliRunner().invoke(command.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "BANK", TINY)
        threads = torch.get_num_threads()
        said = run("--results", folder / "bank", "--models", folder / "models", "--only", "-0.1")
        said += run("--results", folder / "bank", "--models", folder / "models", "--only", "clean")
        torch.set_num_threads(threads)
    return folder, said


def test_a_network_is_measured_once(made, monkeypatch):
    folder, said = made
    monkeypatch.setattr(command, "BANK", TINY)
    assert [line.partition(":")[0] for line in said.splitlines()] == [net.name for net in (*TINY.networks[1:], CLEAN)]
    places = ("--results", folder / "bank", "--models", folder / "models")
    assert run(*places) == ""
    (folder / "bank" / "digits" / f"{CLEAN.name}.json").write_text("{}")
    assert run(*places, "--trained", "--only", "clean").startswith(CLEAN.name)
    arrays = folder / "bank" / "digits" / f"{CLEAN.name}.npz"
    arrays.unlink()
    assert run(*places, "--trained", "--only", "clean").startswith(CLEAN.name)
    assert (folder / "bank" / "judge.md").read_text() == judge(load(folder / "bank"))
    whole = arrays.read_bytes()
    arrays.write_bytes(whole[:2000])
    assert len(load(folder / "bank")) == 2  # a damaged one is passed over
    arrays.write_bytes(whole)
    # What is not trained is left alone if asked.
    assert run("--results", folder / "other", "--models", folder / "none", "--trained") == ""


def test_what_is_kept_is_what_the_network_gives(made):
    folder, _ = made
    member = next(each for each in load(folder / "bank") if each.facts["attack"] == "badnets")
    dataset = load_dataset("digits")
    trained = load_trained(folder / "models" / f"{BADNETS.name}.safetensors", dataset)
    clean = dataset.data.batch(trained.splits.clean)[0]
    found = extract_latents(trained.model, [clean])
    solution = solve_tac(found.latents, found.head.weight, found.head.bias, trim=0.1)
    expected = outlier_scores(solution.norms.double().log())
    torch.testing.assert_close(member.scores["qp 0.1"], expected, rtol=0.02, atol=0.02)  # kept in half precision
    assert set(member.scores) == {"qp 0", "qp 0.1", "qp 0.5", "universal", "warp"}
    assert all(scores.shape == (10,) and scores.isfinite().all() for scores in member.scores.values())
    assert member.facts["target"] == BADNETS.target
    assert sum(array.nbytes for array in member.arrays.values()) < 50_000


# ---- judging -------------------------------------------------------------------------------------------------


def test_auroc_is_sklearns():
    rng = np.random.default_rng(0)
    for _ in range(5):
        positive, negative = rng.integers(0, 6, 20).tolist(), rng.integers(-2, 4, 30).tolist()
        expected = roc_auc_score([1] * 20 + [0] * 30, positive + negative)
        assert auroc(positive, negative) == pytest.approx(expected)
    assert math.isnan(auroc([], [1.0]))
    assert auroc([math.inf], [math.inf, 1.0]) == 0.75


@pytest.mark.parametrize(("count", "allowed"), [(0, 0), (3, 0), (19, 0), (20, 1), (59, 2), (60, 3)])
def test_no_more_false_alarms_than_are_said(count, allowed):
    clean = np.random.default_rng(count).normal(size=count).tolist()
    assert sum(value > limit_of(clean) for value in clean) == allowed


@pytest.mark.parametrize(("score", "classes"), [(3.0, 10), (1.0, 10), (7.5, 200), (12.0, 43)])
def test_surprise_is_the_expected_number_of_such_classes(score, classes):
    scores = torch.full((classes,), -1.0, dtype=torch.float64)
    scores[classes // 2] = score
    assert 10 ** -surprise(scores) == pytest.approx(classes * stats.norm.sf(score))
    assert surprise(torch.cat([scores, torch.tensor([-math.inf], dtype=torch.float64)])) == surprise(scores)
    assert surprise(torch.full((3,), -math.inf)) == -math.inf


def member(attack, asr, target, scores):
    made = Member({"data": "digits", "attack": attack, "target": target, "metrics": {"asr": asr}}, {})
    names = ("qp 0", "qp 0.1", "qp 0.5", "universal", "warp")
    made.__dict__["scores"] = {name: torch.tensor(scores, dtype=torch.float64) for name in names}
    return made


def test_the_table_counts_kinds_apart():
    far, near = [4.0, 0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]
    members = [member("clean", 0.1, None, near)] * 4 + [
        member("badnets", 1.0, 0, far),
        member("badnets", 1.0, 1, far),  # found, with the wrong class
        member("badnets-a2a", 0.95, None, near),
        member("sig", 0.95, 0, far),
        member("wanet", 0.89, 0, near),
    ]
    text = judge(members)
    assert "| digits | 4 | 2 | 1 | 1 | 1 |" in text
    line = next(line for line in text.splitlines() if line.startswith("| universal |"))
    assert [cell.strip() for cell in line.split("|")[2:-1]] == [
        "1.000",
        "2/2 [34, 100] %",
        "1/2 [9, 91] %",
        "0.50",
        "1.00",
    ]


def test_the_committed_table_says_what_the_committed_networks_say():
    text = (command.RESULTS / "judge.md").read_text(encoding="utf-8")
    assert judge(load(command.RESULTS)) == text, "run python -m benchmarks.calibrate judge"
