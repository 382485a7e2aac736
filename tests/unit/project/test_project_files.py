"""Files around the code that no test runs: they can be read, and name what is there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tacfast

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[3]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = [path for path in sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
# A path of this repository in some text: a file of a folder of it, or a file that is written large.
PATH = re.compile(
    r"(?<![\w/.-])(?:(?:\.ci|benchmarks|csrc|docs|examples|tacfast|tests)/[\w./-]*\w|[A-Z]+\.md|pyproject\.toml)"
)


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_there_is_what_a_project_needs():
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "release.yml"]
    assert len(FORMS) == 3
    assert load(GITHUB / "ISSUE_TEMPLATE" / "config.yml") == {"blank_issues_enabled": False}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_jobs_of_steps_and_few_rights(path):
    workflow = load(path)
    assert workflow[True]  # "on", which YAML takes for a truth value
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert set(job.get("needs", [])) <= set(workflow["jobs"])
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            assert re.fullmatch(r"[\w-]+/[\w-]+@[\w./-]+", step.get("uses", "some/action@v1"))


def test_ci_is_the_script_that_everybody_can_run():
    steps = load(GITHUB / "workflows" / "ci.yml")["jobs"]["everything"]["steps"]
    assert steps[-1] == {"run": ".ci/run"}


def test_a_release_has_wheels_and_source_and_only_a_tag_publishes():
    jobs = load(GITHUB / "workflows" / "release.yml")["jobs"]
    assert {each["archs"] for each in jobs["wheels"]["strategy"]["matrix"]["include"]} == {"x86_64", "aarch64", "arm64"}
    assert jobs["publish"]["needs"] == [name for name in jobs if name != "publish"]
    assert jobs["publish"]["if"] == "github.event_name == 'push'"
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})] == ["publish"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs the sed of GNU, which the workflow has")
def test_the_wheel_with_cuda_has_its_name_wherever_it_says_what_to_install(tmp_path):
    shutil.copytree(ROOT / "tacfast", tmp_path / "tacfast", ignore=lambda _, names: [n for n in names if "_C" in n])
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    steps = load(GITHUB / "workflows" / "release.yml")["jobs"]["cuda-wheels"]["steps"]
    rename = next(step["run"] for step in steps if step.get("name", "").startswith("Its name"))
    subprocess.run(["bash", "-e", "-c", rename], cwd=tmp_path, check=True)
    texts = {path: path.read_text() for path in [tmp_path / "pyproject.toml", *tmp_path.rglob("*.py")]}
    assert [path for path, text in texts.items() if "tacfast[" in text] == []
    changed = texts[tmp_path / "pyproject.toml"]
    assert 'name = "tacfast-cu13"\n' in changed
    assert changed.replace("tacfast-cu13", "tacfast") == PYPROJECT


def test_wheels_are_built_from_the_oldest_python_that_is_supported():
    oldest = int(re.search(r'^requires-python = ">=3\.(\d+)"$', PYPROJECT, re.MULTILINE)[1])
    built = re.search(r'^build = "(.*)"$', PYPROJECT, re.MULTILINE)[1]
    assert built.split() == [f"cp3{minor}-*" for minor in range(oldest, 15)]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_an_issue_form_is_one(path):
    form = load(path)
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids) > 0
    for field in form["body"]:
        assert field["type"] in ("textarea", "dropdown")
        assert field["attributes"]["label"]
        assert ("options" in field["attributes"]) == (field["type"] == "dropdown")


@pytest.mark.parametrize(
    "name",
    ["SECURITY.md", "CITATION.cff", "mkdocs.yml", *(str(path.relative_to(ROOT)) for path in GITHUB.rglob("*.*"))],
)
def test_files_that_are_named_are_there(name):
    for path in PATH.findall(read(name)):
        assert (ROOT / path).exists(), f"{name} names {path}"


def test_paths_are_found_in_text():
    text = "see `tacfast/models/_pickles.py`, SECURITY.md and (benchmarks/results/LOG.md); not dist/x.whl or a.tests/b"
    assert PATH.findall(text) == ["tacfast/models/_pickles.py", "SECURITY.md", "benchmarks/results/LOG.md"]


def test_the_version_is_written_in_one_place():
    provider = re.search(r'^\[tool\.scikit-build\.metadata\.version\]\n.*\ninput = "(.*)"$', PYPROJECT, re.MULTILINE)[1]
    assert re.findall(r'^__version__ = "(.*)"$', read(provider), re.MULTILINE) == [tacfast.__version__]
    assert 'dynamic = ["version"]' in PYPROJECT
    assert "version" not in load(ROOT / "CITATION.cff")


def test_the_citation_is_of_the_paper():
    citation = load(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    (paper,) = citation["references"]
    assert paper["url"] == "https://arxiv.org/abs/2511.08944"
    assert paper["url"] in read("README.md")
    assert f"title  = {{{paper['title']}}}" in read("README.md")
