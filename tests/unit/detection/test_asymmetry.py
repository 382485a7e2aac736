"""All-to-all backdoors: shifts between pairs of classes that are short one way and not back."""

import math
from functools import partialmethod

import numpy as np
import pytest
import torch
from torch import nn

from tacfast import GapMatrix, scan, solve_tac
from tacfast.defenses import AutoRepair, Confirmation, LatentRepair
from tacfast.detection import QUICK, Asymmetry, Evidence, Rule
from tacfast.detection.asymmetry import MIN_OWN, MIN_SAMPLES, asymmetry_of, norms_between
from tacfast.detection.bank import Bank
from tacfast.jackknife import weigh
from tacfast.report import scan_facts
from tacfast.report.words import stability_sentence

C = 6


def by_hand(norms):
    """The asymmetry, step by step, with the two-way fit as a least-squares problem."""
    known = ~np.isnan(norms).all(1)
    d = norms[known][:, known]
    d = np.where(np.isinf(d), d[np.isfinite(d)].max(), d)
    n = len(d)
    pairs = [(j, k) for j in range(n) for k in range(n) if j != k]
    rows = np.zeros((len(pairs), 2 * n))
    for row, (j, k) in zip(rows, pairs, strict=True):
        row[j] = row[n + k] = 1
    values = np.array([d[j, k] for j, k in pairs])
    fit, *_ = np.linalg.lstsq(rows, values, rcond=None)
    rest = dict(zip(pairs, values - rows @ fit, strict=True))
    back = {(j, k): rest[k, j] - rest[j, k] for j, k in pairs}
    nearest = [min((k for k in range(n) if k != j), key=lambda k, j=j: rest[j, k]) for j in range(n)]
    return np.mean([back[j, k] for j, k in enumerate(nearest)]) / math.sqrt(np.mean(np.square(list(back.values()))))


def norms_like(seed):
    """Mutual nearness and a little noise."""
    rng = np.random.default_rng(seed)
    norms = rng.normal(5, 1, (C, C))
    norms = (norms + norms.T) / 2 + rng.normal(0, 0.05, (C, C))
    np.fill_diagonal(norms, np.nan)
    return norms


@pytest.mark.parametrize("seed", range(4))
def test_it_is_what_it_says(seed):
    norms = norms_like(seed)
    assert float(asymmetry_of(torch.from_numpy(norms))) == pytest.approx(by_hand(norms))
    norms[2] = np.nan  # no samples of class 2
    norms[4, 1] = np.inf
    assert float(asymmetry_of(torch.from_numpy(norms))) == pytest.approx(by_hand(norms))


@pytest.mark.parametrize("seed", range(4))
def test_short_cuts_one_way_are_seen_and_mutual_ones_are_not(seed):
    before = float(asymmetry_of(torch.from_numpy(norms_like(seed))))
    one_way, both_ways = norms_like(seed), norms_like(seed)
    for j in range(C):
        one_way[j, (j + 1) % C] -= 2
    for j in range(0, C, 2):
        both_ways[[j, j + 1], [j + 1, j]] -= 2
    assert float(asymmetry_of(torch.from_numpy(one_way))) > 1.5 > 1 > before
    assert float(asymmetry_of(torch.from_numpy(both_ways))) < 1


def test_it_depends_neither_on_unit_nor_on_how_easy_a_class_is_to_reach_or_to_leave():
    norms = torch.from_numpy(norms_like(0)).fill_diagonal_(0)
    norms = norms - norms.mean(0, keepdim=True)
    norms = norms - norms.mean(1, keepdim=True)
    norms.fill_diagonal_(torch.nan)
    moved = 3 * norms + torch.arange(C) ** 2
    found = asymmetry_of(moved), asymmetry_of(norms)
    torch.testing.assert_close(
        *found, atol=0.2, rtol=0
    )  # means over all but the class itself do not take off all of it


def test_where_there_is_nothing_to_compare_it_says_so():
    equal = torch.full((C, C), 1 / 3, dtype=torch.float64).fill_diagonal_(torch.nan)
    assert asymmetry_of(equal) == 0
    assert asymmetry_of(torch.full((43, 43), 1 / 3, dtype=torch.float64).fill_diagonal_(torch.nan)) == 0
    assert asymmetry_of(torch.full((C, C), torch.nan, dtype=torch.float64)).isnan()
    few = equal.clone()
    few[:2] = torch.nan  # four sources are left
    assert asymmetry_of(few).isnan()
    many = torch.full((15, 15), 1 / 3, dtype=torch.float64).fill_diagonal_(torch.nan)
    many[:5] = torch.nan
    assert asymmetry_of(many) == 0
    many[5] = torch.nan  # more than a third of the classes
    assert asymmetry_of(many).isnan()
    assert asymmetry_of(few.where(few.isnan(), torch.inf)).isnan()


def test_norms_are_those_of_the_samples_of_one_class_alone():
    generator = torch.Generator().manual_seed(0)
    W, b = torch.randn(C, 9, generator=generator), torch.randn(C, generator=generator)
    latents = torch.randn(900, 9, generator=generator)
    answers = (latents @ W.T + b).argmax(1)
    gaps = GapMatrix(W, b, keep_logits=True).update(latents)
    found = norms_between(gaps, 0.1)
    for j in range(C):
        own = latents[answers == j]
        assert len(own) >= MIN_OWN
        expected = solve_tac(own, W, b, trim=0.1).norms.double()
        expected[j] = torch.nan
        torch.testing.assert_close(found[j], expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    lone = torch.cat([latents[answers == 0][: MIN_OWN - 1], latents[answers != 0]])
    assert norms_between(GapMatrix(W, b, keep_logits=True).update(lone), 0.1)[0].isnan().all()


def test_of_few_samples_or_classes_and_of_too_many_classes_nothing_is_said(monkeypatch):
    logits = torch.eye(C).repeat(MIN_SAMPLES // C + 1, 1) + torch.rand(1, generator=torch.Generator().manual_seed(0))

    def asymmetry(rows):
        return Asymmetry().values(Evidence(GapMatrix(torch.eye(C), keep_logits=True).update_logits(rows)))

    assert asymmetry(logits).isfinite()
    assert asymmetry(logits[: MIN_SAMPLES - 1]).isnan()
    monkeypatch.setattr("tacfast.detection.asymmetry.MAX_CLASSES", C - 1)
    assert asymmetry(logits).isnan()


def test_a_solve_that_failed_counts_as_missing(monkeypatch):
    monkeypatch.setattr(GapMatrix, "solve", partialmethod(GapMatrix.solve, max_iter=1))
    generator = torch.Generator().manual_seed(0)
    gaps = GapMatrix(torch.randn(C, 9, generator=generator), keep_logits=True)
    gaps.update(torch.randn(900, 9, generator=generator))
    assert norms_between(gaps, 0.1).isnan().any(1).all()


# ---- the verdict ---------------------------------------------------------------------------------------------


class Told:
    name = title = "a"
    needs_inputs = by_nature = False


RULE = Rule("quick", (Told(),), pairs=Asymmetry())
EVEN = torch.linspace(-1, 1, 10, dtype=torch.float64)
LIMIT = Bank.of("asymmetry").suspicious


def judged(asymmetry, values=EVEN, obstacles=()):
    return RULE.judge({"a": values, "asymmetry": torch.tensor(asymmetry, dtype=torch.float64)}, None, obstacles)


def test_one_limit_of_the_banks_clean_networks_decides():
    assert (judged(LIMIT).label, judged(LIMIT).all_to_all) == ("nothing_found", False)
    verdict = judged(LIMIT + 0.01)
    assert (verdict.label, verdict.classes, verdict.all_to_all) == ("suspicious", (), True)
    assert f"an asymmetry of {LIMIT + 0.01:.2f}, suspicious is more than {LIMIT:.2f}" in verdict.reasons[-1]
    assert not any("no proof" in reason for reason in verdict.reasons)
    assert judged(math.nan).label == "nothing_found"
    missing = RULE.judge({"a": EVEN})
    assert math.isnan(missing.asymmetry)
    assert not missing.all_to_all
    assert missing.reasons[-1].startswith("an all-to-all backdoor was not looked for")
    assert not any("not looked for" in reason for reason in judged(0.0).reasons)
    # A class that stands out is named all the same, and where nothing can be said, nothing is.
    lone = EVEN.clone()
    lone[4] = -30
    assert (judged(9.0, lone).classes, judged(9.0, lone).all_to_all) == ((4,), True)
    assert (judged(9.0, EVEN, ["it rains"]).label, judged(9.0, EVEN, ["it rains"]).all_to_all) == (
        "inconclusive",
        False,
    )


def one_way_latents(count=400, seed=0):
    """Latents of which those of class j lean towards class j + 1, the head being the identity."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.arange(count) % 8
    far = 4 + torch.rand(8, generator=generator)  # so that no class stands out by chance
    latents = far[own, None] * torch.eye(8)[own] + 2 * torch.eye(8)[(own + 1) % 8]
    return latents + 0.2 * torch.randn(count, 8, generator=generator)


def make_model():
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(8))
    return model


def test_a_scan_finds_it_and_a_repair_trains_against_all():
    report = scan(make_model(), [one_way_latents()], quick=True, blocks=5)
    assert (report.verdict.label, report.verdict.classes) == ("suspicious", ())
    assert report.verdict.all_to_all
    assert all(run.all_to_all for run in report.stability.runs)
    assert report.verdict.aims == AutoRepair().resolve(report) == LatentRepair().resolve(report) == tuple(range(8))
    assert AutoRepair(targets=(2,)).resolve(report) == (2,)
    facts = scan_facts(report)
    assert (
        facts["verdict"]["headline"] == "Suspicious: samples of each class go to another one far more easily than back"
    )
    assert facts["verdict"]["asymmetry"] > LIMIT
    bank = Bank.of("asymmetry")
    assert f"{bank.found} of {bank.attacked} networks with an all-to-all backdoor" in facts["bank"]["sentence"]
    symmetric = one_way_latents() + 2 * torch.eye(8)[(torch.arange(400) - 1) % 8]
    assert not scan(make_model(), [symmetric], quick=True).verdict.all_to_all


def test_runs_that_name_a_class_do_not_weaken_it():
    """They do not measure what it is about."""
    report = scan(make_model(), [one_way_latents()], quick=True, blocks=5)
    lone = EVEN.clone()
    lone[4] = -30
    named = QUICK.judge({"qp": lone, "asymmetry": torch.tensor(9.0)})
    stability = type(report.stability)((named, *report.stability.runs[1:]))
    assert weigh(report.verdict, stability) == report.verdict
    assert "which was measured with all samples alone" in stability_sentence(report.verdict, stability)


def test_a_network_that_still_looks_so_is_not_repaired():
    report = scan(make_model(), [one_way_latents()], quick=True, blocks=0)
    quiet = QUICK.judge({"qp": EVEN, "asymmetry": torch.tensor(0.0)})
    assert Confirmation(report.verdict, quiet, (4,), {4: 0.0}).outcome == "not confirmed"
    assert report.perturbations == ()
