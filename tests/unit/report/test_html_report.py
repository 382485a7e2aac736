"""The facts of a scan, and the page made of them: complete, self-contained, and safe whatever names it shows."""

import base64
import copy
import dataclasses
import functools
import itertools
import json
import math
import re
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from shortcut import TARGET, make_data, make_model
from torch import nn

from tacfast import scan
from tacfast._text import printable
from tacfast.defenses.base import Accuracy, EpochRecord, RepairResult
from tacfast.detection import FULL, Perturbation
from tacfast.detection.bank import Bank
from tacfast.detection.universal import Additive
from tacfast.report import accuracy_warning, repair_facts, scan_facts, write_html, write_json
from tacfast.report.html import MAX_ROWS
from tacfast.report.words import bank_sentence

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

VOID = {"meta", "img", "source", "br", "hr", "link", "input"}
HOSTILE = {
    1: "<script>alert(1)</script>",
    2: '"><img src=x onerror=alert(1)>',
    3: "$\\frac{$ & {{ 7 * 7 }} {% raw %}",
    4: "\x00\x1b[31m\ud800\ufffe\u202egnp.exe",
    5: "中文 ñ 🐟",
}
HARMLESS = {k: f"name {k}" for k in HOSTILE}
TITLES = {statistic.name: statistic.title for statistic in FULL.statistics}
SCORES = ("class", "score", TITLES["qp"])
RANGES = ("class", "score", "rank", "named in")


@pytest.fixture(autouse=True)
def bank(monkeypatch):
    """A bank that is always the same, whatever networks are in the one that is shipped."""
    known = Bank((0.1, 0.2, 0.3, 1.6), suspicious=1.5, borderline=1.0, judged=4, alarms=1, attacked=9, found=7, right=6)
    monkeypatch.setattr(Bank, "of", staticmethod(lambda rule: known))
    return known


class Page(HTMLParser):
    """Tags with attributes in order, and text and table cells as a reader sees them."""

    def __init__(self, text):
        super().__init__()
        self.source, self.tags, self.words, self.rows, self.open = text, [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("dd", "td", "li", "p"):
            self.words.append(" ")
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("style", "title"):
            return
        self.words.append(data)
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data

    def table(self, *columns):
        """Body rows of the table with these columns, as dicts."""
        start = next(i for i, row in enumerate(self.rows) if row[: len(columns)] == list(columns))
        body = []
        for row in self.rows[start + 1 :]:
            if row[0] in ("class", "latent", "images with the trigger", "true class of the image"):
                break
            body.append(dict(zip(self.rows[start], (cell.strip() for cell in row), strict=True)))
        return body

    @property
    def pictures(self):
        """Decoded SVGs of all pictures."""
        uris = [attrs.get("src") or attrs["srcset"] for tag, attrs in self.tags if tag in ("img", "source")]
        assert all(uri.startswith("data:image/svg+xml;base64,") for uri in uris)
        return [base64.b64decode(uri.partition(",")[2]).decode() for uri in uris]


def number(cell):
    return float(cell.replace("−", "-").replace("∞", "inf").replace("–", "nan").removesuffix(" %"))


@functools.cache
def suspicious(quick=False):
    return scan(make_model(), make_data().loader(64), quick=quick)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Write a page of a report, or of facts, once and parse it."""
    folder, done = tmp_path_factory.mktemp("pages"), {}

    def write(key, shown, **settings):
        if key not in done:
            path = folder / f"{key}.html"
            write_html(path, shown if isinstance(shown, dict) else scan_facts(shown, **settings))
            done[key] = Page(path.read_text(encoding="utf-8"))
        return done[key]

    return write


SOURCE = {"checkpoint": "suspect.pt", "architecture": "resnet18", "data": "/data/clean", "batches": 4}


def plain(page):
    return page("plain", suspicious(), names=HARMLESS, source=SOURCE)


# ---- facts ---------------------------------------------------------------------------------------------------


def test_facts_are_those_of_the_report_and_survive_json(tmp_path):
    report = suspicious()
    facts = scan_facts(report, names=HARMLESS, source=SOURCE | {"path": tmp_path})
    write_json(tmp_path / "facts.json", facts)
    written = json.loads((tmp_path / "facts.json").read_text(), parse_constant=pytest.fail)
    # There are too few samples for it.
    assert (written["verdict"].pop("asymmetry"), math.isnan(facts["verdict"].pop("asymmetry"))) == (None, True)
    assert written == facts
    verdict = report.verdict
    assert facts["verdict"]["label"] == "suspicious"
    assert facts["verdict"]["classes"] == [TARGET]
    assert facts["verdict"]["reasons"] == list(verdict.reasons)
    assert (facts["verdict"]["rule"], facts["verdict"]["left_out"]) == ("full", [])
    # None of the four clean networks is as surprising, and this one is counted in.
    assert facts["verdict"]["p_value"] == 1 / 5
    assert facts["verdict"]["threshold"] == verdict.threshold < verdict.scores[TARGET]
    assert [row["norm"] for row in facts["classes"]] == report.solution.norms.tolist()
    assert [row["score"] for row in facts["classes"]] == list(verdict.scores.values())
    assert facts["statistics"] == [{"name": name, "title": title} for name, title in TITLES.items()]
    assert [found.name for found in verdict.findings] == list(TITLES)
    for row in facts["classes"]:
        assert row["statistics"] == {
            found.name: {"value": found.values[row["class"]], "score": found.scores[row["class"]]}
            for found in verdict.findings
        }
        scores = [each["score"] for each in row["statistics"].values()]
        assert row["score"] == pytest.approx(max(*scores, sum(scores) / math.sqrt(3)))
        assert row["rank"] == 1 + sum(other["score"] > row["score"] for other in facts["classes"])
    assert [row["jackknife"]["score"] for row in facts["classes"]] == [
        list(report.stability.scores[k]) for k in range(10)
    ]
    assert [row["jackknife"]["named"] for row in facts["classes"]] == [10 * (k == TARGET) for k in range(10)]
    assert [row["name"] for row in facts["classes"]] == [HARMLESS.get(k) for k in range(10)]
    assert [row["accuracy"] for row in facts["classes"]] == report.class_accuracy.tolist()
    gaps = [row["certificate"]["gap"] for row in facts["classes"]]
    assert gaps == report.solution.certificate.gap.tolist()
    assert facts["certificate"] == {"statuses": {"OPTIMAL": 10}, "worst": facts["certificate"]["worst"]}
    assert facts["certificate"]["worst"]["gap"] == max(gaps)
    assert facts["stability"] == {
        "blocks": 10,
        "labels": {"suspicious": 10},
        "sentence": "10 runs, the shifts of each solved for without another block of the samples: suspicious in 10",
    }
    assert facts["timings"] == dict(report.timings)
    assert (facts["scan"]["samples"], facts["scan"]["classes"], facts["scan"]["latents"]) == (200, 10, 11)
    assert facts["scan"]["head"] == "1"
    assert facts["source"] == SOURCE | {"path": str(tmp_path)}
    assert {"tacfast", "torch", "numpy", "python"} <= set(facts["installation"])


def test_the_bank_is_told_as_it_is():
    facts = scan_facts(suspicious())["bank"]
    sentence = facts.pop("sentence")
    assert facts == {"clean": 4, "false_alarms": 1, "attacked": 9, "found": 7, "right": 6}
    assert sentence == (
        "7 of 9 networks whose backdoor is known are called suspicious, 6 of them with the right class, and so are 1 "
        "of 4 clean ones"
    )


def test_the_bank_of_the_rule_that_was_applied_is_told(monkeypatch):
    asked = []
    monkeypatch.setattr(
        Bank, "of", staticmethod(lambda rule: asked.append(rule) or Bank((1.0,), 2.0, 2.0, 1, 0, 3, 2, 1))
    )
    for quick in (False, True):
        found = scan_facts(suspicious(quick))["bank"]
        assert ("which show fewer backdoors" in found["sentence"]) == quick
        assert "2 of 3 networks" in found["sentence"]
    assert asked[-1] == "quick"
    assert "full" in asked


def test_the_bank_that_is_shipped_can_be_told(monkeypatch):
    monkeypatch.undo()
    for rule in ("full", "quick"):
        known = Bank.of(rule)
        verdict = dataclasses.replace(suspicious().verdict, rule=rule)
        assert f"{known.alarms} of {known.judged} clean ones" in bank_sentence(verdict, known)
        assert 0 <= known.right <= known.found <= known.attacked
        assert known.borderline <= known.suspicious


def test_latents_that_carry_the_shift():
    (found,) = scan_facts(suspicious())["latents"]
    shift = suspicious().solution.perturbations[TARGET].double()
    shares = (shift**2 / (shift**2).sum()).tolist()
    order = sorted(range(11), key=lambda i: -shares[i])
    assert found["class"] == TARGET
    assert [row["latent"] for row in found["top"]] == order
    assert order[0] == 10  # the pixel that leads to the target alone
    assert [row["value"] for row in found["top"]] == pytest.approx([float(shift[i]) for i in order])
    assert [row["share"] for row in found["top"]] == pytest.approx([shares[i] for i in order])
    for name, goal in (("half", 0.5), ("most", 0.9)):
        assert sum(shares[i] for i in order[: found[name]]) >= goal > sum(shares[i] for i in order[: found[name] - 1])
    assert found["top_share"] == pytest.approx(1.0)


def test_a_shift_of_nothing_has_no_shares():
    report = suspicious()
    still = dataclasses.replace(report.solution, perturbations=torch.zeros_like(report.solution.perturbations))
    (found,) = scan_facts(dataclasses.replace(report, solution=still))["latents"]
    assert (found["half"], found["most"], found["top_share"]) == (0, 0, 0.0)


@pytest.mark.parametrize(
    ("accuracy", "classes", "warned"),
    [(0.1, 10, True), (0.36, 10, True), (0.38, 10, False), (0.55, 2, True), (0.7, 2, False), (0.35, 1000, False)],
)
def test_an_accuracy_near_guessing_is_warned_of(accuracy, classes, warned):
    assert (accuracy_warning(accuracy, classes) is not None) == warned


def make_result(before, after, held_out=(), **fields):
    """A result whose accuracies are of a thousand samples per class; NaN for a class without any."""

    def counts(shares):
        known = [not math.isnan(share) for share in shares]
        correct = tuple(round(1000 * share) if ok else 0 for share, ok in zip(shares, known, strict=True))
        return Accuracy(correct, tuple(1000 * ok for ok in known))

    history = tuple(EpochRecord(i, 0.5, 0.9, value) for i, value in enumerate(held_out, start=1))
    return RepairResult(nn.Identity(), history, 12.34, before=counts(before), after=counts(after), **fields)


def test_repair_facts_are_those_of_the_result():
    result = make_result([0.5, math.nan, 1.0], [0.25, math.nan, 1.0], [0.7], mode="prune", epoch=1, pruned=(3, 5))
    found = repair_facts(result)
    assert found["before"]["per_class"][::2] == [0.5, 1.0]
    assert math.isnan(found["before"]["per_class"][1])
    assert (found["before"]["overall"], found["after"]["overall"], found["samples"]) == (0.75, 0.625, 2000)
    assert (found["mode"], found["epoch"], found["pruned"], found["held_out"]) == ("prune", 1, [3, 5], [0.7])
    alone = repair_facts(RepairResult(nn.Identity(), (EpochRecord(1, 0.5, 0.9),), 1.0))
    assert (alone["before"], alone["after"], alone["held_out"]) == (None, None, [])


def test_printable_keeps_letters_of_all_scripts():
    assert printable("naïve ñ 中文 می‌خواهم 🐟") == "naïve ñ 中文 می‌خواهم 🐟"
    assert printable("a\x00b\u202ec\ud800d\ne") == "a\ufffdb\ufffdc\ufffdd\ufffde"


# ---- the page ------------------------------------------------------------------------------------------------


def test_the_page_stands_alone(page):
    found = plain(page)
    assert found.source.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in found.tags}
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on") or name == "href"]
    style = re.search(r"<style>(.*?)</style>", found.source, re.S).group(1)
    assert "@import" not in style
    assert "url(" not in style
    assert not re.search(r"https?:|//\w", re.sub(r"base64,[\w+/=]+", "", found.source).replace(style, ""))
    policy = next(attrs["content"] for _, attrs in found.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    for svg in found.pictures:
        references = re.findall(r'href="([^"]*)"', svg) + re.findall(r"url\(([^)]*)\)", svg)
        assert all(reference.startswith("#") for reference in references)


def test_the_page_is_accessible(page):
    tags = plain(page).tags
    assert dict(tags)["html"] == {"lang": "en"}
    assert any(attrs.get("name") == "viewport" for _, attrs in tags)
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(len(attrs["alt"]) > 20 for tag, attrs in tags if tag == "img")
    assert all("scope" in attrs for tag, attrs in tags if tag == "th")


def test_every_fact_is_shown(page):
    found, facts = plain(page), scan_facts(suspicious(), names=HARMLESS, source=SOURCE)
    said = (facts["verdict"]["headline"], *facts["verdict"]["reasons"], facts["bank"]["sentence"])
    for text in (*said, facts["scan"]["head"], "200", "float32"):
        assert text in found.text
    for key, value in facts["source"].items():
        assert f"{key} {value}" in found.text
    for name in ("tacfast", "torch", "numpy", "python", "platform"):
        assert facts["installation"][name] in found.text
    for stage in facts["timings"]:
        assert re.search(rf"\b{stage} [\d.]+ m?s\b", found.text)
    assert facts["stability"]["sentence"] in found.text
    assert "jackknife ranges, no confidence intervals" in found.text
    (shift,) = facts["latents"]
    assert f"carried by {shift['half']} of 11 latents, 90 % by {shift['most']}" in found.text


def test_every_number_is_shown(page):
    found, facts = plain(page), scan_facts(suspicious())
    scores, ranges, solved = found.table(*SCORES), found.table(*RANGES), found.table("class", "status", "primal")
    assert len(scores) == len(ranges) == len(solved) == 10
    assert f"the threshold of {facts['verdict']['threshold']:.2f}, " in found.text
    assert "; 20 % of the clean networks, with this one counted in, have a class that stands out as much" in found.text
    for row, a, b, c in zip(facts["classes"], scores, ranges, solved, strict=True):
        k = row["class"]
        label = f"{k} (name {k})" if k in HARMLESS else str(k)
        assert a["class"] == b["class"] == c["class"] == label
        assert number(a["score"]) == pytest.approx(row["score"], abs=0.006)
        for name, title in TITLES.items():
            assert number(a[title]) == pytest.approx(row["statistics"][name]["score"], abs=0.006)
        assert number(a["norm"]) == pytest.approx(row["norm"], rel=1e-3)
        assert int(a["rank"]) == row["rank"]
        assert number(a["accuracy"]) == pytest.approx(100 * row["accuracy"], abs=0.06)
        assert a["remark"] == ("▲ suspicious" if k == TARGET else "")
        for name, tolerance in (("score", 6e-3), ("rank", 0)):
            low, _, high = b[name].partition(" … ")
            shown = [number(low), number(high or low)]
            assert shown == pytest.approx(row["jackknife"][name], abs=tolerance)
        assert b["named in"] == f"{row['jackknife']['named']} of 10"
        assert c["status"] == row["status"].lower()
        for name in ("primal", "dual", "stationarity", "gap"):
            assert number(c[name]) == pytest.approx(row["certificate"][name], rel=0.06)
        assert number(c["norm, at least"]) == pytest.approx(row["certificate"]["lower"], rel=1e-3)
        assert number(c["at most"]) == pytest.approx(row["certificate"]["upper"], rel=1e-3)
    for row, shown in zip(facts["latents"][0]["top"], found.table("latent", "value"), strict=True):
        assert int(shown["latent"]) == row["latent"]
        assert number(shown["value"]) == pytest.approx(row["value"], rel=1e-3)


def test_hostile_names_and_paths_are_text(page):
    paths = {"checkpoint": "</title><script>alert(2)</script>\udcff", "<b>": "<i>x</i>", "architecture": "{{ 7 * 7 }}"}
    calm = {"checkpoint": "a", "b": "c", "architecture": "d"}
    hostile = page("hostile", suspicious(), names=HOSTILE, source=paths)
    harmless = page("harmless", suspicious(), names=HARMLESS, source=calm)
    shape = [(tag, sorted(attrs)) for tag, attrs in hostile.tags]
    assert shape == [(tag, sorted(attrs)) for tag, attrs in harmless.tags]
    for name in HOSTILE.values():
        assert printable(name) in hostile.text
    assert "{{ 7 * 7 }}" in hostile.text
    assert "</title><script>alert(2)</script>\ufffd" in hostile.text
    assert "\u202e" not in hostile.source
    assert "\x00" not in hostile.source


def test_hostile_names_are_text_in_the_pictures_too(page):
    hostile = page("hostile", suspicious(), names=HOSTILE, source={"checkpoint": "x"})
    assert len(hostile.pictures) == 6
    for svg in hostile.pictures:
        tree = ElementTree.fromstring(svg)
        tags = {element.tag.partition("}")[2] for element in tree.iter()}
        assert not {"script", "img", "foreignObject", "image", "a"} & tags
        texts = "\n".join(element.text or "" for element in tree.iter() if element.tag.endswith("}text"))
        assert "<script>alert(1)</scrip…" in texts
        assert "$\\frac{$ & {{ 7 * 7 }} " in texts
        assert "中文 ñ 🐟" in texts


def test_pictures_show_threshold_and_fit_a_phone(page):
    sizes, shown = [], plain(page).pictures
    assert sum("threshold" in svg for svg in shown) == 4  # of the scores and of their ranges, not of the norms
    for svg in shown:
        sizes.append(float(re.search(r'width="([\d.]+)pt"', svg).group(1)) / 72)
    assert max(sizes) < 8.5
    assert min(sizes) < 4.5


def test_two_hundred_classes_stay_readable(page):
    report = scan(make_model(200), make_data(200, per_class=10, noise=0.1).loader(500), blocks=2)
    assert report.verdict.classes == (TARGET,)
    found = page("many", report)
    rows = found.table(*SCORES)
    assert len(rows) == MAX_ROWS
    assert rows[0]["class"] == str(TARGET)
    assert [int(row["rank"]) for row in rows] == sorted(int(row["rank"]) for row in rows)
    assert len(found.table(*RANGES)) == MAX_ROWS
    assert f"The {MAX_ROWS} of 200 classes that are the easiest to reach" in found.text
    assert found.text.count("Of 200 classes, those that are the easiest to reach, the easiest first.") == 2
    for svg in found.pictures:
        width, height = (float(re.search(rf'{side}="([\d.]+)pt"', svg).group(1)) / 72 for side in ("width", "height"))
        assert width < 8.5
        assert height < 14


def test_nothing_found_is_no_proof(page):
    report = scan(make_model(gain=0.0), make_data(per_class=40).loader(64))
    assert report.verdict.label == "nothing_found"
    found = page("nothing", report)
    assert "Nothing found is no proof" in found.text
    assert "suspicious" not in {attrs.get("class") for tag, attrs in found.tags if tag == "header"}
    assert "▲" not in found.text
    for sentence in re.findall(r"[^.:]*\bis clean\b[^.:]*", found.text):
        assert "no proof" in sentence


def test_that_all_runs_miss_the_same_is_not_called_stable(page):
    report = scan(make_model(gain=0.0), make_data(per_class=40).loader(64))
    assert report.stability.labels == {"nothing_found": 10}
    found = page("nothing", report)
    assert "find nothing either, which is no evidence of a clean model" in found.text
    assert not re.search(r"10 of 10 runs|nothing found in 10|same verdict", found.text)


def test_borderline_is_said_in_words(page):
    report = suspicious()
    unnamed = dataclasses.replace(report.verdict, label="borderline", classes=())
    found = page("borderline", dataclasses.replace(report, verdict=unnamed))
    assert f"Borderline: class {TARGET} is easier to reach than the others, but not by enough" in found.text
    assert "neither an alarm nor nothing found" in found.text
    assert "▲" not in found.text
    named = dataclasses.replace(report.verdict, label="borderline")
    found = page("borderline-named", dataclasses.replace(report, verdict=named))
    assert f"Borderline: class {TARGET} is far easier to reach than the others, but not in every run" in found.text
    assert found.table(*SCORES)[TARGET]["remark"] == "△ borderline"


def test_inconclusive_says_why(page):
    model = make_model()
    report = scan(model, make_data(per_class=3).loader(30))
    found = page("inconclusive", report)
    assert "Inconclusive" in found.text
    assert report.verdict.reasons[0] in found.text
    assert "This says nothing about the model" in found.text
    assert "No threshold applies here." in found.text
    # Nothing is judged, so that nothing has a score.
    assert {(row["score"], row["remark"]) for row in found.table(*SCORES)} == {("–", "too few samples")}


def test_a_class_that_cannot_be_reached(page, tmp_path):
    model = make_model(hidden=(4,))
    with torch.no_grad():
        model[1].bias[4] = 0.3  # so that samples of it are still assigned to it
    report = scan(model, make_data().loader(64))
    assert math.isinf(report.solution.norms[4])
    found = page("infeasible", report)
    row = found.table(*SCORES)[4]
    assert row["norm"] == "∞"
    assert number(row[TITLES["qp"]]) < 0
    assert "no shift sends every sample" in row["remark"]
    assert sum("not reachable" in svg for svg in found.pictures) == 2
    write_json(tmp_path / "facts.json", scan_facts(report))
    shown = json.loads((tmp_path / "facts.json").read_text())["classes"][4]
    assert (shown["norm"], shown["status"]) == (None, "INFEASIBLE")


def changed(change):
    """Facts of which `change` has made something else."""
    facts = copy.deepcopy(scan_facts(suspicious()))
    for row in facts["classes"]:
        change(row)
    return facts


def test_far_norms_do_not_flatten_the_pictures(page):
    found = page("far", changed(lambda row: row.update(norm=1.2e8 if row["class"] == 7 else row["norm"])))
    shown = [svg for svg in found.pictures if "1.2e+08 ↑" in svg]
    assert len(shown) == 2
    assert not any("1e8" in svg for svg in shown)  # as the axis would be labelled


@pytest.mark.parametrize(("score", "text", "mark"), [(math.inf, "∞", "∞"), (16.77, "16.77", "16.8")])
def test_far_scores_are_written_out_and_do_not_flatten_the_pictures(page, score, text, mark):
    def far(row):
        if row["class"] == TARGET:
            row["score"] = row["statistics"]["qp"]["score"] = score
            row["jackknife"]["score"] = [score, score]

    found = page(f"far {score}", changed(far))
    row = found.table(*SCORES)[TARGET]
    assert (row["score"], row[TITLES["qp"]]) == (text, text)
    assert found.table(*RANGES)[TARGET]["score"] == text
    assert [sum(f"{mark} {arrow}" in svg for svg in found.pictures) for arrow in "↑→"] == [2, 2]


def test_a_class_without_a_score_is_a_dash_and_draws_nothing(page):
    def missing(row):
        if row["class"] == 7:
            row["score"] = math.nan
            row["jackknife"]["score"] = [math.nan, math.nan]
            for found in row["statistics"].values():
                found["score"] = math.nan

    found, others = page("missing", changed(missing)), page("none missing", scan_facts(suspicious()))
    row = found.table(*SCORES)[7]
    assert [row["score"], *(row[title] for title in TITLES.values())] == ["–"] * (1 + len(TITLES))
    assert found.table(*RANGES)[7]["score"] == "–"
    # A mark of each statistic less, and that of the ranges.
    marks = [[svg.count("<use ") for svg in shown.pictures] for shown in (found, others)]
    assert [before - after for after, before in zip(*marks, strict=True)] == [len(TITLES)] * 2 + [0] * 2 + [1] * 2
    assert not any("nan" in svg.replace("dominant", "") for svg in found.pictures)


def test_zero_has_no_sign(page):
    found = page("zero", changed(lambda row: row.update(score=-0.004)))
    assert {row["score"] for row in found.table(*SCORES)} == {"0.00"}


@pytest.mark.parametrize("norm", [math.inf, math.nan, 0.0])
def test_norms_that_are_all_the_same(page, norm):
    report = suspicious()
    solution = dataclasses.replace(report.solution, norms=torch.full_like(report.solution.norms, norm))
    undecided = dataclasses.replace(report.verdict, label="inconclusive", classes=(), threshold=math.nan)
    shown = dataclasses.replace(report, solution=solution, verdict=undecided)
    found = page(f"all {norm}", shown)
    assert "No threshold applies here." in found.text
    words = {"inf": "not reachable", "nan": "not solved", "0.0": "0.00"}[str(norm)]
    assert sum(svg.count(words) >= 10 for svg in found.pictures) == 2
    assert ("No class can be reached by any shift." in found.text) == (norm != 0)


def test_a_quick_scan_says_that_it_sees_less(page):
    facts = scan_facts(suspicious(quick=True))
    assert (facts["verdict"]["rule"], facts["statistics"]) == ("quick", [{"name": "qp", "title": TITLES["qp"]}])
    assert list(facts["classes"][0]["statistics"]) == ["qp"]
    found, full = page("quick", facts), plain(page)
    words = "by the shifts of the latents alone, which show fewer backdoors, 7 of 9 networks"
    assert words in found.text
    assert words not in full.text
    others = set(TITLES.values()) - {TITLES["qp"]}
    assert len(others) > 0
    for title in others:
        assert title in full.text
        assert not any(title in text for text in (found.text, *found.pictures))
    assert "the largest of its scores" not in found.text
    assert f"the largest of its scores by {len(TITLES)} statistics (marks)" in full.text


def test_without_labels_stability_or_names(page):
    report = scan(make_model(), [make_data().images], blocks=0)
    found = page("bare", report)
    assert "the samples have no labels" in found.text
    assert "Not measured" in found.text
    assert len(found.pictures) == 4
    assert {row["accuracy"] for row in found.table(*SCORES)} == {"–"}


def test_an_implausible_accuracy_is_warned_of(page):
    data = make_data()
    wrong = dataclasses.replace(data, labels=(data.labels + 1) % 10)
    found = page("implausible", scan(make_model(), wrong.loader(64), blocks=0))
    assert "Warning: an accuracy of 0.0 % on clean samples is implausible" in found.text


def test_a_repair_is_told(page):
    before, after = [0.9 + k / 100 for k in range(10)], [0.95 - k / 100 for k in range(10)]
    before[3] = after[3] = math.nan
    result = make_result(before, after, [0.8, 0.9, 0.85], mode="latent", epoch=2, targets=(3,))
    found = page("repaired", suspicious(), repair=repair_facts(result))
    assert "Mode latent, against class 3" in found.text
    assert "weights after epoch 2 were kept, chosen among 3 by the accuracy on 9000 held-out" in " ".join(
        found.text.split()
    )
    assert "12.3 s" in found.text
    rows = found.table("class", "before", "after", "change")
    assert [number(row["before"]) for row in rows] == pytest.approx([100 * x for x in before], abs=0.06, nan_ok=True)
    assert [number(row["after"]) for row in rows] == pytest.approx([100 * x for x in after], abs=0.06, nan_ok=True)
    assert rows[0]["change"] == "+5.0"
    assert rows[9]["change"] == "−13.0"
    assert len(found.pictures) == 8
    assert any("epoch 2, chosen" in svg for svg in found.pictures)


CONFIRMATION = {
    "outcome": "not confirmed",
    "label": "borderline",
    "classes": [3],
    "headline": "Borderline: class 3",
    "doubts": ["a <doubt>", "another"],
    "notes": ["a note"],
}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_perturbation_is_shown_where_the_inputs_are_images(tmp_path, channels):
    inputs = torch.rand(5, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    change = torch.full((channels, 8, 8), 0.1)
    found = Perturbation(
        target=3,
        inputs=inputs,
        perturbed=inputs + 0.1,
        size=0.25,
        share=0.875,
        additive=Additive.of(inputs),
        change=change,
    )
    facts = scan_facts(dataclasses.replace(suspicious(), perturbations=(found,)), names={3: "<cat>"})
    assert facts["perturbations"] == [{"class": 3, "size": 0.25, "share": 0.875}]
    path = tmp_path / "report.html"
    write_html(path, facts, (found,))
    shown = Page(path.read_text(encoding="utf-8"))
    assert "sends 87.5 % of them to class 3 (<cat>), and its norm is 0.2500 of" in shown.text
    (image,) = [attrs for tag, attrs in shown.tags if tag == "img" and attrs["src"].startswith("data:image/png")]
    assert base64.b64decode(image["src"].partition(",")[2]).startswith(b"\x89PNG")
    # Other inputs have no picture, and no perturbation no section.
    flat = dataclasses.replace(found, inputs=inputs.flatten(1), perturbed=inputs.flatten(1))
    write_html(path, facts, (flat,))
    assert "image/png" not in path.read_text(encoding="utf-8")
    write_html(path, scan_facts(dataclasses.replace(suspicious(), perturbations=())))
    assert "What leads there" not in path.read_text(encoding="utf-8")


def test_a_second_scan_and_its_doubts_are_told(page):
    result = make_result([0.9] * 10, [0.8] * 10, mode="latent", epoch=2, targets=(3,))
    facts = repair_facts(result, CONFIRMATION)
    assert facts["confirmation"] == CONFIRMATION
    found = page("confirmation", suspicious(), repair=facts)
    for text in ("The repair is not confirmed", "Borderline: class 3.", "Not confirmed: a <doubt>.", "a note"):
        assert text in found.text
    assert repair_facts(result)["confirmation"] is None


def test_what_was_measured_of_the_attack_and_warnings_are_told(page):
    before = {"asr": 0.987, "ra": 0.012, "ra_per_class": [0.02, 0.004] + [math.nan] * 8, "images": 800}
    after = {"asr": 0.021, "ra": 0.9, "ra_per_class": [0.91, 0.89] + [math.nan] * 8, "images": 800}
    attack = {"before": before, "after": None}
    found = page("attack", suspicious(), attack=attack, warnings=["<b>mind</b>", "the gap"])
    assert found.table("images with the trigger", "before") == [
        {"images with the trigger": "led astray (ASR)", "before": "98.7 %"},
        {"images with the trigger": "classified correctly (RA)", "before": "1.2 %"},
    ]
    rows = found.table("true class of the image", "before")
    assert [row["before"] for row in rows] == ["2.0 %", "0.4 %"] + ["–"] * 8
    assert "Measured on 800 test images with the trigger, which lie beside the checkpoint" in found.text
    assert "they had no part in the verdict." in found.text
    assert "Warning: <b>mind</b>. Warning: the gap." in found.text
    repair = repair_facts(make_result([0.9] * 10, [0.8] * 10, mode="latent", epoch=2, targets=(3,)))
    found = page("attack-after", suspicious(), attack=attack | {"after": after}, repair=repair)
    rows = found.table("images with the trigger", "before", "after the repair")
    assert [row["after the repair"] for row in rows] == ["2.1 %", "90.0 %"]
    rows = found.table("true class of the image", "before", "after the repair")
    assert [row["after the repair"] for row in rows] == ["91.0 %", "89.0 %"] + ["–"] * 8
    many = {**after, "ra_per_class": [k / 200 for k in range(200)]}
    found = page(
        "attack-of-many",
        suspicious(),
        attack={"before": many, "after": {**many, "ra_per_class": many["ra_per_class"][::-1]}},
    )
    rows = found.table("true class of the image", "before", "after the repair")
    assert len(rows) == MAX_ROWS
    assert rows[0] == {"true class of the image": "199", "before": "99.5 %", "after the repair": "0.0 %"}
    assert f"The {MAX_ROWS} of 200 classes with the lowest" in found.text
    assert scan_facts(suspicious())["attack"] is None
    assert scan_facts(suspicious())["warnings"] == []


def test_a_repair_that_was_rolled_back_and_one_of_many_classes(page):
    before, after = [0.9] * 200, [0.9 - k / 1000 for k in range(200)]
    result = make_result(before, after, mode="prune", epoch=0, rolled_back=True)
    found = page("rolled-back", suspicious(), repair=repair_facts(result))
    assert "Rolled back" in found.text
    rows = found.table("class", "before", "after", "change")
    assert [int(row["class"]) for row in rows] == list(range(199, 149, -1))


def test_a_repair_without_held_out_samples(page):
    result = RepairResult(nn.Identity(), (EpochRecord(1, 0.5, 0.9),), 1.0, mode="latent", epoch=1, targets=(3,))
    found = page("unmeasured", suspicious(), repair=repair_facts(result))
    assert "The weights after epoch 1 were kept. It took" in " ".join(found.text.split())
    assert "Clean accuracy of each class" not in found.text


def test_the_same_scan_gives_the_same_pictures(page):
    assert plain(page).pictures == page("again", suspicious(), names=HARMLESS).pictures


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib.figure"])
def test_without_the_extra_it_is_named_and_nothing_is_written(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"tacfast\[report\]"):
        write_html(tmp_path / "report.html", scan_facts(suspicious()))
    assert list(tmp_path.iterdir()) == []
