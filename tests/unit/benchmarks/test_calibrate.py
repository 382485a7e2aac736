"""The bank of networks: what is in it, what is kept of one, and how rules are judged from that."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

pytest.importorskip("sklearn")
pytest.importorskip("safetensors")
pytest.importorskip("typer")
pytest.importorskip("jinja2")
pytest.importorskip("fcntl")

from sklearn.metrics import roc_auc_score
from small_grid import BADNETS, CLEAN, TINY
from typer.testing import CliRunner

from benchmarks.calibrate import __main__ as command
from benchmarks.calibrate.bank import BANK
from benchmarks.calibrate.judge import (
    BORDERLINE,
    SUSPICIOUS,
    Member,
    auroc,
    bank_of,
    bank_of_pairs,
    judge,
    limit_of,
    load,
    summary,
)
from benchmarks.defence.page import with_summary
from benchmarks.defence.profiles import PROFILES
from tacfast.attacks import ATTACKS
from tacfast.data import load_dataset
from tacfast.detection import FULL, QUICK, Asymmetry, QpNorm, Rule, UniversalPerturbation
from tacfast.detection.bank import FILE as BANK_FILE
from tacfast.detection.bank import Bank
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
    expected = solution.norms.double().log()
    torch.testing.assert_close(member.values["qp 0.1"], expected, rtol=0.02, atol=0.02)  # kept in half precision
    assert member.values.pop("asymmetry").isfinite()
    assert set(member.values) == {"qp 0", "qp 0.1", "qp 0.5", "universal", "inner", "nearness"}
    assert all(values.shape == (10,) and values.isfinite().all() for values in member.values.values())
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


@pytest.mark.parametrize("share", [SUSPICIOUS, BORDERLINE])
@pytest.mark.parametrize("count", [0, 1, 3, 19, 20, 39, 40, 59, 81])
def test_no_more_false_alarms_than_are_said(count, share):
    clean = np.random.default_rng(count).normal(size=count).tolist()
    alarms = sum(value > limit_of(clean, share) for value in clean)
    assert alarms <= share * count < alarms + 1  # as many as are allowed, too


RULE, OTHER = Rule("any", (QpNorm(),)), Rule("other", (UniversalPerturbation(),))


def member(attack, target, easiest, depth, asr=1.0, data="digits", arch="a", acc=1.0, asymmetry=0.0):
    """A network of ten classes, of which one is so much easier to reach than the others are."""
    metrics = {"acc": acc, "asr": asr}
    made = Member({"data": data, "arch": arch, "attack": attack, "target": target, "metrics": metrics}, {})
    values = torch.linspace(0.0, 1.0, 10, dtype=torch.float64)
    values[easiest] = -depth
    names = ("qp 0", "qp 0.1", "qp 0.5", "universal", "inner", "nearness")
    pairs = torch.tensor(asymmetry, dtype=torch.float64)
    made.__dict__.update(values=dict.fromkeys(names, values) | {"asymmetry": pairs}, _short=[])
    return made


def test_a_member_is_scored_as_a_rule_would_score_it():
    made = member("clean", None, 3, 2.0)
    made.values["universal"] = -made.values["qp 0.1"]
    rule = Rule("both", (QpNorm(), UniversalPerturbation()))
    pairs = [outlier_scores(sign * made.values["qp 0.1"]).tolist() for sign in (1, -1)]
    largest = [max(a, b, (a + b) / math.sqrt(2)) for a, b in zip(*pairs, strict=True)]
    assert made.scores(rule) == dict(enumerate(largest))
    assert made.scores(RULE) == dict(enumerate(pairs[0]))
    assert (made.names(RULE), made.names(OTHER)) == (3, 9)
    assert 10 ** -made.surprise(RULE) == pytest.approx(10 * stats.norm.sf(pairs[0][3]))
    # Classes that are left out are no rivals, and no measure.
    made._scores.clear()
    made.__dict__["_short"] = [3]
    assert made.names(RULE) == 0
    assert math.isnan(made.scores(RULE)[3])
    made._scores.clear()
    made.__dict__["_short"] = list(range(8))
    assert made.surprise(RULE) == -math.inf


def test_classes_with_few_answers_are_left_out(made):
    some = load(made[0] / "bank")[0]
    answers = some.arrays["logits"].argmax(1)
    assert some._short == []
    k = int(np.bincount(answers).argmin())
    kept = np.concatenate([np.flatnonzero(answers != k), np.flatnonzero(answers == k)[:3]])
    fewer = Member(some.facts, {**some.arrays, "logits": some.arrays["logits"][kept]})
    assert fewer._short == [k]
    assert math.isnan(fewer.scores(RULE)[k])


MEMBERS = [
    *(member("clean", None, 0, depth) for depth in (0.1, 0.2, 0.3, 0.4)),
    member("badnets", 5, 5, 9.0),
    member("badnets", 6, 5, 9.0),  # found, with the wrong class
    member("wanet", 5, 5, 0.1),  # not found
    member("badnets-a2a", None, 0, 0.25, asr=0.95),
    member("sig", 2, 2, 9.0, asr=0.95),
    member("wanet", 0, 1, 0.1, asr=0.89),
]


def test_what_a_rule_takes_from_the_bank():
    found = bank_of(MEMBERS, RULE)
    clean = [each.surprise(RULE) for each in MEMBERS[:4]]
    assert found["clean"] == sorted(round(value, 4) for value in clean)
    assert found["suspicious"] == found["borderline"] == round(max(clean), 4)  # none of four may be an alarm
    assert Bank(**found).judged == 0  # no stranger is among them
    # Of 40, one may be an alarm, and four may be borderline: it is in this that the two limits differ.
    many = [member("clean", None, 0, 0.05 * i) for i in range(40)]
    bank = Bank(**(bank_of(many, RULE) | {"clean": tuple(bank_of(many, RULE)["clean"])}))
    assert sum(value > bank.suspicious for value in bank.clean) == 1
    assert sum(value > bank.borderline for value in bank.clean) == 4


def cells(text, *begin):
    """The cells of the last line of a table that begins so."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return next(line[len(begin) :] for line in reversed(lines) if tuple(line[: len(begin)]) == begin)


def test_the_table_counts_kinds_apart():
    text = judge(MEMBERS)
    first = text[: text.index("## Each network")]
    assert cells(first, "digits") == ["4", "3", "1", "1", "1"]
    # The missed one is as odd as the least odd of the clean ones but for rounding: two of three lie above all.
    clean, odd = ([each.surprise(RULE) for each in MEMBERS[part]] for part in (slice(4), slice(4, 7)))
    expected = roc_auc_score([0] * 4 + [1] * 3, clean + odd)
    assert cells(first, "universal") == [f"{expected:.3f}", "0.500", "1.000", "2/3 [21, 94] %"]


def test_each_network_is_judged_by_strangers():
    members = [
        *(member("clean", None, 0, 0.1 * i, data=data, arch=arch) for i, (data, arch) in enumerate(["xa", "xb", "yb"])),
        member("badnets", 5, 5, 9.0, data="x", arch="a"),  # judged by all but x, a
        member("badnets", 5, 6, 9.0, data="y", arch="b"),
        member("badnets", 5, 5, 9.0, data="y", arch="a"),  # by all: there is no clean y, a
        member("badnets", 5, 5, 0.05, data="x", arch="a"),  # less odd than y, b
        member("badnets", 5, 5, 9.0, data="z", arch="c"),  # by all
        member("badnets", 5, 5, 9.0, data="x", arch="b"),
    ]
    text = judge(members)
    text = text[text.index("## Each network") : text.index("## All-to-all")]
    # Of the clean ones each is judged by the two others; only y, b exceeds them.
    assert cells(text, "universal", "all") == ["5/6 [44, 97] %", "4/5 [38, 96] %", "1/3 [6, 79] %"]
    assert cells(text, "universal", "x") == ["2/3 [21, 94] %", "2/2 [34, 100] %", "0/2 [0, 66] %"]
    assert cells(text, "universal", "z") == ["1/1 [21, 100] %", "1/1 [21, 100] %", "–"]


def test_all_to_all_networks_are_judged_by_strangers_asymmetries():
    assert member("badnets-a2a", None, 0, 0.2, asr=0.85, acc=0.94).kind == "all-to-all"  # of what it tells apart
    assert member("badnets-a2a", None, 0, 0.2, asr=0.85, acc=0.95).kind == "weak"
    clean = [("x", "a", 0.3), ("x", "b", math.nan), ("y", "b", 0.5)]  # nan: nothing can be said of it
    attacked = [("x", "a", 0.6), ("x", "a", 0.45), ("y", "b", 0.4), ("z", "c", math.nan)]
    members = [
        *(member("clean", None, 0, 0.1, data=data, arch=arch, asymmetry=value) for data, arch, value in clean),
        *(member("badnets-a2a", None, 0, 0.1, data=data, arch=arch, asymmetry=value) for data, arch, value in attacked),
        member("badnets", 5, 5, 9.0, data="z", arch="c", asymmetry=9.0),
    ]
    text = judge(members)
    text = text[text.index("## All-to-all") :]
    expected = roc_auc_score([0] * 3 + [1] * 4, [0.3, -1.0, 0.5, 0.6, 0.45, 0.4, -1.0])
    assert cells(text, "all") == [f"{expected:.3f}", "2/4 [15, 85] %", "1/3 [6, 79] %"]
    assert cells(text, "x")[1:] == ["1/2 [9, 91] %", "0/2 [0, 66] %"]
    assert (bank_of_pairs(members)["found"], bank_of_pairs(members)["alarms"]) == (2, 1)
    # What is clean and called suspicious for either is a false alarm of a rule that looks at both.
    alone, both = (bank_of(members, replace(RULE, pairs=pairs)) for pairs in (None, Asymmetry()))
    assert both["alarms"] == 1 + alone["alarms"]
    assert (both["found"], both["right"]) == (alone["found"], alone["right"])


def test_what_the_package_knows_is_what_the_committed_networks_say():
    members = load(command.RESULTS)
    banks = {rule.name: bank_of(members, rule) for rule in (FULL, QUICK)} | {"asymmetry": bank_of_pairs(members)}
    expected = {"rules": banks}
    assert json.loads(BANK_FILE.read_text(encoding="utf-8")) == expected, "run python -m benchmarks.calibrate judge"
    text = command.README.read_text(encoding="utf-8")
    assert with_summary(text, summary(members, command.RULES), command.MARKS) == text


def test_only_the_bank_of_the_repository_is_what_the_package_knows(made, tmp_path, monkeypatch):
    folder, _ = made
    places = "--results", folder / "bank", "--models", folder / "models"
    monkeypatch.setattr(command, "BANK_FILE", tmp_path / "bank.json")
    monkeypatch.setattr(command, "README", tmp_path / "README.md")
    before = "\n".join(command.MARKS)
    (tmp_path / "README.md").write_text(before)
    run("judge", "--results", folder / "bank")
    monkeypatch.setattr(command, "RESULTS", folder / "bank")
    run(*places, "--trained")  # part of a bank makes no limits
    with pytest.raises(ValueError, match="bank: expected at least 40 clean networks to take limits from, got 1"):
        run("judge", "--results", folder / "bank")
    assert not (tmp_path / "bank.json").exists()
    assert (tmp_path / "README.md").read_text() == before
    monkeypatch.setattr(command, "MIN_CLEAN", 1)
    run("judge", "--results", folder / "bank")
    assert "networks: 1 clean (1 on digits)" in (tmp_path / "README.md").read_text()
    written = json.loads((tmp_path / "bank.json").read_text())["rules"]
    assert set(written) == {"full", "quick", "asymmetry"}
    assert len(written["full"]["clean"]) == 1


def test_the_committed_table_says_what_the_committed_networks_say():
    text = (command.RESULTS / "judge.md").read_text(encoding="utf-8")
    assert judge(load(command.RESULTS)) == text, "run python -m benchmarks.calibrate judge"
