"""Tables of the grid of attacks and defences, and the README's summary of it."""

import dataclasses
import json
import math
import statistics
from pathlib import Path

import pytest
from scipy import stats

pytest.importorskip("typer")
pytest.importorskip("jinja2")

ROOT = Path(__file__).parents[3]

from benchmarks.defence import page, tables  # noqa: E402
from benchmarks.defence.__main__ import RESULTS  # noqa: E402
from benchmarks.defence.profiles import DEFENCES, ORACLES, Network  # noqa: E402
from benchmarks.defence.store import Store  # noqa: E402
from benchmarks.defence.summary import MIN_ASR, Row, Share, averages, rows_of  # noqa: E402

NETWORKS = [Network("digits", "small-preact-resnet", "badnets", 0.1, seed) for seed in range(2)]
WEAK = Network("digits", "small-preact-resnet", "wanet", 0.1, 0)
CLEAN = Network("digits", "small-preact-resnet", "clean", 0.0, 0)


def scanned(label="suspicious", classes=(3,)):
    return {"label": label, "classes": list(classes), "aims": list(classes)}


def suspect(asr, target=3):
    return {
        "target": target,
        "before": {"acc": 0.9, "asr": asr, "ra": 0.05},
        "attacked_images": 90,
        "test_images": 100,
        "ceiling": None,
        "reconstruction": None,
        "relearning": [{"poisoned_images": n, "asr": 0.5, "acc": 0.9} for n in (5, 50, 500)],
        "seconds": {"training": 1.0},
    }


def cell(acc, asr, ra, relearning=None, **more):
    return {
        "after": {"acc": acc, "asr": asr, "ra": ra},
        "der": (max(0, 0.95 - asr) - max(0, 0.9 - acc) + 1) / 2,
        "relearning": relearning,
        "error": None,
        "reason": None,
        "seconds": {"defence": 7.0},
        **more,
    }


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path)
    for network, acc in zip(NETWORKS, (0.8, 0.9), strict=True):
        made.write(network.name, "network", suspect(0.95))
        made.write(network.name, "scan", scanned())
        made.write(network.name, "ft", cell(acc, 0.2, 0.7))
    made.write(WEAK.name, "network", suspect(0.89))
    made.write(WEAK.name, "scan", scanned("nothing_found", ()))
    made.write(WEAK.name, "ft", cell(0.9, 0.1, 0.8, error="ValueError: <broken>"))
    made.write(CLEAN.name, "network", suspect(0.01))
    made.write(CLEAN.name, "scan", scanned())
    made.write(CLEAN.name, "ft", cell(0.87, 0.01, 0.8))
    return made


def rows(store):
    return rows_of(store, [*NETWORKS, WEAK, CLEAN], ("ft", "fp"))


def test_seeds_are_grouped_with_mean_spread_and_wilson_interval(store):
    row = next(row for row in rows(store) if row.attack == "badnets" and row.defence == "ft")
    assert row.mean("acc") == pytest.approx(0.85)
    assert row.spread("acc") == pytest.approx(0.1 / math.sqrt(2))
    share, expected = row.interval("acc"), stats.binomtest(170, 200).proportion_ci(method="wilson")
    assert (share.low, share.high) == pytest.approx((expected.low, expected.high))
    # What was not repaired stands where relearning of the suspect stands.
    assert row.values("relearn-50") == [0.5, 0.5]


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 7), (500, 9000)])
def test_wilson_intervals_are_scipys(k, n):
    share, expected = Share.of(k / n, n), stats.binomtest(k, n).proportion_ci(method="wilson")
    assert (share.low, share.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_attacks_that_did_not_take_are_apart_and_in_no_average(store):
    found = averages(rows(store))
    assert {each.defence: each.attacks for each in found} == {"none": 1, "ft": 1}
    after = next(each for each in found if each.defence == "ft")
    assert after.means["ra"] == pytest.approx(0.7)
    assert after.clean_loss == pytest.approx(0.03)
    titles = [section["title"] for section in tables.sections(rows(store))]
    assert "wanet" in titles[-1]
    assert tables.sections(rows(store))[-1]["weak"]


def test_an_attack_takes_from_the_limit_on(store):
    weak, strong = (dataclasses.replace(NETWORKS[0], ratio=ratio) for ratio in (0.02, 0.03))
    for network, asr in ((weak, MIN_ASR - 1e-9), (strong, MIN_ASR)):
        store.write(network.name, "network", suspect(asr))
        store.write(network.name, "clp", cell(0.8, asr / 2, 0.5))
    found = rows_of(store, [weak, strong, CLEAN], ["clp"])
    assert {row.ratio: row.weak for row in found} == {0.02: True, 0.03: False, 0.0: False}
    order = [(section["weak"], section["clean"]) for section in tables.sections(found)]
    assert order == [(False, False), (False, True), (True, False)]
    assert tables.markdown(found, "about").count("listed apart: ASR below 0.9 before any repair") == 1
    (average,) = (each for each in averages(found) if each.defence == "clp")
    assert average.means["asr"] == pytest.approx(MIN_ASR / 2)


def test_one_weak_seed_makes_the_group_weak():
    cells = tuple(suspect(asr) for asr in (1.0, 0.89, 1.0))
    assert Row("digits", "a", "badnets", 0.1, "none", (), cells).weak
    assert not Row("digits", "a", "badnets", 0.1, "none", (), cells[::2]).weak


def test_what_was_not_repaired_relearns_as_the_network_does():
    relearned = [{"poisoned_images": 50, "asr": 0.25, "acc": 0.9}]
    asrs = (0.1, 0.2, 0.6)
    cells = tuple(cell(0.9, asr, 0.5, relearning=relearned if asr == 0.1 else None) for asr in asrs)
    row = Row("digits", "a", "badnets", 0.1, "clp", cells, tuple(suspect(1.0) for _ in range(3)))
    assert (row.mean("asr"), row.spread("asr")) == (pytest.approx(0.3), pytest.approx(statistics.stdev(asrs)))
    assert row.values("relearn-50") == [0.25, 0.5, 0.5]


def test_wilsons_interval_as_published():
    """Newcombe 1998 (Statistics in Medicine 17), table I: 81 of 263 and 15 of 148 by the score method."""
    for hits, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        share = Share.of(hits / n, n)
        assert (share.low, share.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_every_poison_ratio_has_a_summary_of_its_own(store):
    rare = dataclasses.replace(NETWORKS[0], ratio=0.01)
    store.write(rare.name, "network", suspect(0.95))
    store.write(rare.name, "ft", cell(0.5, 0.5, 0.1))
    found = tables.summaries(rows_of(store, [rare, *NETWORKS, WEAK, CLEAN], ("ft",)))
    assert [table["title"] for table in found] == ["digits, 1 % poisoned", "digits, 10 % poisoned"]
    lines = [{line[0]: line[1:] for line in table["lines"]} for table in found]
    assert lines[0]["ft"][:4] == ["1", "50.0", "50.0", "10.0"]
    assert lines[1]["ft"][3] == "70.0"


def test_the_page_counts_verdicts_and_names_attacks_that_did_not_take(store, monkeypatch):
    monkeypatch.setattr(page, "rows_in_profile", lambda *_: rows(store))
    text = page.page_summary(store)
    assert (
        "named the poisoned class of 2 of 3 backdoored networks, a wrong one of 0, and a class of 1 of 1 clean" in text
    )
    assert "In no mean, because their ASR was below 0.9 before any repair: wanet on digits (10 %)." in text


def test_both_tables_hold_every_cell_and_escape_what_is_in_it(store, tmp_path):
    md, html = (path.read_text() for path in tables.write_tables(tmp_path, "grid", rows(store), "About."))
    for text in (md, html):
        assert text.count("wanet") >= 1
        assert "ASR below 0.9" in text
        assert "85.0" in text
    assert "<broken>" not in html
    assert "&lt;broken&gt;" in html


def test_the_summary_goes_between_its_marks_and_nowhere_else():
    text = f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n"
    marks = page.BEGIN, page.END
    new = page.with_summary(text, "new", marks)
    assert new == f"before\n{page.BEGIN}\n\nnew\n\n{page.END}\nafter\n"
    with pytest.raises(ValueError, match="expected the marks"):
        page.with_summary("nothing", "new", marks)


def test_the_page_says_what_the_committed_cells_say():
    text = (ROOT / page.PAGE).read_text(encoding="utf-8")
    assert page.with_summary(text, page.page_summary(Store(RESULTS)), (page.BEGIN, page.END)) == text, (
        "run python -m benchmarks.defence --profile paper-small --tables"
    )


def test_the_committed_tables_say_what_the_committed_cells_say():
    names = tuple(DEFENCES | ORACLES)
    for path in RESULTS.glob("*.md"):
        found = page.rows_in_profile(Store(RESULTS), path.stem, names)
        text = path.read_text(encoding="utf-8")
        about = text.split("\n\n")[1]
        assert tables.markdown(found, about) == text, f"run python -m benchmarks.defence --profile {path.stem} --tables"


def test_every_committed_cell_is_sound():
    for path in RESULTS.glob("*/*.json"):
        assert Store(RESULTS).read(path.parent.name, path.stem) is not None, path
        assert json.loads(path.read_text())["network"] == path.parent.name
