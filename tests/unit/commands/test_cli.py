import dataclasses
import functools
import json
import signal
import subprocess
import sys
import warnings
from contextlib import suppress

import pytest
from shortcut import make_data, make_model

from tacfast import cli, demo, scan
from tacfast.defenses import MODES
from tacfast.demo import DemoResult
from tacfast.evaluation import Metrics

REPAIRED = Metrics(0.97, 0.01, 0.9)


def forget(monkeypatch, name):
    """Make ``import name`` fail, and what imports it be imported anew."""
    for module in [module for module in sys.modules if module.startswith("tacfast.commands")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr("tacfast.commands", raising=False)  # put back afterwards, along with the modules
    monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("name", ["typer", "rich.console"])
def test_without_the_extras_one_line_says_what_to_install(monkeypatch, capsys, name):
    forget(monkeypatch, name)
    assert cli.main(["demo"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "pip install 'tacfast[all]'" in captured.err


def test_other_import_errors_are_not_blamed_on_the_extras(monkeypatch, capsys):
    forget(monkeypatch, "tacfast.demo")
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err == "tacfast: error: import of tacfast.demo halted; None in sys.modules\n"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([], 2),
        (["-h"], 0),
        *(([command, "-h"], 0) for command in ("scan", "repair", "train", "show", "demo", "info", "schema")),
        (["schema"], 0),
        (["scan", "x.pt"], 2),
        (["scan", "nowhere.pt", "--data", "digits"], 1),
        (["scan", "nowhere.pt", "--data", "digits", "--mean", "x"], 2),
        (["repair", "nowhere.pt", "--data", "digits", "--out", "x.pt"], 1),
        (["repair", "nowhere.pt", "--data", "digits", "--out", "x.pt", "--mode", "magic"], 2),
        (["scan", "a.pt", "b.pt", "--data", "digits"], 2),
        (["scan", "a.pt", "--data", "digits", "--preset", "magic"], 2),
        (["train", "--out", "x.safetensors", "--attack", "magic"], 2),
        (["train", "--out", "x.pt"], 2),
    ],
)
def test_help_and_wrong_usage_do_not_wait_for_torch(arguments, status):
    pytest.importorskip("typer")
    code = (
        f"import sys; from tacfast.cli import main; status = main({arguments}); "
        "print([name for name in ('torch', 'numpy', 'matplotlib', 'jinja2') if name in sys.modules]); sys.exit(status)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.splitlines()[-1:] == ["[]"]
    assert run.returncode == status


def test_the_help_of_repair_knows_what_the_modes_do_without_options():
    typer = pytest.importorskip("typer")
    options = typer.main.get_command(pytest.importorskip("tacfast.commands").app).commands["repair"].params
    told = {option.name: option.help for option in options}
    brief, long = {"auto", "universal"}, {"latent", "prune"}
    assert set(MODES) == brief | long
    assert {(MODES[name].epochs, MODES[name].rates) for name in brief} == {(5, (0.01, 0.003))}
    assert {(MODES[name].epochs, MODES[name].rates) for name in long} == {(60, (0.1, 0.03, 0.01, 0.003))}
    assert "if not given, 5, in modes latent and prune 60." in told["epochs"]
    assert "in turn 0.01 and 0.003, in modes latent and prune 0.1, 0.03, 0.01 and 0.003." in told["lr"]


def test_the_package_needs_torch_and_numpy_only():
    code = (
        "import sys; [sys.modules.update({name: None}) for name in"
        " ('sklearn', 'matplotlib', 'typer', 'rich', 'torchvision', 'timm', 'safetensors', 'scipy')];"
        "import tacfast, tacfast.demo, tacfast.report, tacfast.cli; print(tacfast.cli.main(['demo']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "1\n"
    assert "tacfast[all]" in run.stderr
    assert "Traceback" not in run.stderr


@functools.cache
def scanned():
    return scan(make_model(), make_data().loader(64), quick=True)


def make_result(failures=(), found=3, after=REPAIRED, poisoned=3):
    label = "nothing_found" if found is None else "suspicious"
    classes = () if found is None else (found,)
    verdict = dataclasses.replace(scanned().verdict, label=label, classes=classes, reasons=("a reason",))
    report = dataclasses.replace(scanned(), verdict=verdict)
    return DemoResult(report, poisoned, Metrics(0.98, 1.0, 0.0), after, 12.5, tuple(failures))


@pytest.fixture
def pretend(monkeypatch):
    """Let the command run, but replace the training by a ready result; returns the arguments it was called with."""
    commands = pytest.importorskip("tacfast.commands.work.demo")
    seen = []

    def prepare(result):
        def run_demo(seed, *, clean, on_progress):
            seen.append((seed, clean))
            on_progress("train", 1, 2)
            on_progress("scan", 5, 5)
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(commands, "run_demo", run_demo)
        return seen

    return prepare


def test_demo_writes_its_files_and_succeeds(pretend, tmp_path, capsys):
    seen = pretend(make_result())
    folder = tmp_path / "a" / "b"
    assert cli.main(["demo", "--seed", "7", "--out", str(folder)]) == 0
    assert seen == [(7, False)]
    report = json.loads((folder / "report.json").read_text())
    assert {"verdict", "poisoned_class", "found_class", "before", "after", "seconds", "p_value"} <= set(report)
    assert (report["verdict"], report["poisoned_class"], report["found_class"]) == ("suspicious", 3, 3)
    assert report["before"] == {"acc": 0.98, "asr": 1.0, "ra": 0.0}
    assert report["after"] == {"acc": 0.97, "asr": 0.01, "ra": 0.9}
    assert report["scores"] == {str(k): score for k, score in scanned().verdict.scores.items()}
    assert report["p_value"] == scanned().verdict.p_value
    assert (folder / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.iterdir()) == ["report.json", "scores.png"]
    assert "97.0 %" in capsys.readouterr().out


def test_a_broken_promise_is_exit_status_one_and_a_line(pretend, tmp_path, capsys):
    pretend(make_result(failures=["the backdoor survived", "too slow"]))
    assert cli.main(["demo", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "tacfast: demo failed: the backdoor survived; too slow\n"
    assert (tmp_path / "report.json").exists()


def test_clean_demo(pretend, tmp_path):
    seen = pretend(make_result(found=None, after=None, poisoned=None))
    assert cli.main(["demo", "--clean", "--out", str(tmp_path)]) == 0
    assert seen == [(0, True)]
    assert json.loads((tmp_path / "report.json").read_text())["after"] is None


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("loader: expected\nmore"), 1, "tacfast: error: loader: expected"),
        (ImportError("the digits need scikit-learn: pip install 'tacfast[digits]'"), 1, "tacfast[digits]"),
        (RuntimeError("odd"), 1, "tacfast: error: RuntimeError: odd"),
        (RuntimeError(), 1, "tacfast: error: RuntimeError: "),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_line(pretend, tmp_path, capsys, error, status, line):
    pretend(error)
    assert cli.main(["demo", "--out", str(tmp_path)]) == status
    captured = capsys.readouterr().err
    assert line in captured
    assert "Traceback" not in captured
    assert captured.strip().count("\n") == 0


def is_file(folder):
    folder.parent.mkdir()
    folder.write_text("")


def is_below_a_file(folder):
    folder.parent.write_text("")


def holds_a_folder_of_that_name(folder):
    (folder / "scores.png").mkdir(parents=True)


@pytest.mark.parametrize("spoil", [is_file, is_below_a_file, holds_a_folder_of_that_name])
def test_a_folder_that_cannot_be_written_is_an_error_before_the_work(pretend, tmp_path, capsys, spoil):
    seen = pretend(make_result())
    folder = tmp_path / "a" / "b"
    spoil(folder)
    assert cli.main(["demo", "--out", str(folder)]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert seen == []


def test_a_folder_that_takes_no_files_is_an_error_before_the_work(pretend, tmp_path, monkeypatch, capsys):
    seen = pretend(make_result())

    def refuse(*_):
        raise PermissionError("no files here")

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 1
    assert "no files here" in capsys.readouterr().err
    assert seen == []


def test_missing_matplotlib_is_an_error_before_the_work(pretend, tmp_path, monkeypatch, capsys):
    seen = pretend(make_result())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 1
    assert "tacfast[report]" in capsys.readouterr().err
    assert seen == []


def test_the_report_is_there_even_if_the_picture_fails(pretend, tmp_path, monkeypatch):
    pretend(make_result())

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(demo, "plot_scores", fail)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_brackets_are_text_and_long_lines_stay_whole(pretend, tmp_path, capsys):
    long = f"a [bold]reason[/x] {'of many words ' * 10}."
    result = make_result()
    verdict = dataclasses.replace(result.report.verdict, reasons=(long,))
    pretend(dataclasses.replace(result, report=dataclasses.replace(result.report, verdict=verdict)))
    folder = tmp_path / "run[" / "x]"
    assert cli.main(["demo", "--out", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"  {long}" in lines
    assert lines[-1].endswith(f"wrote {folder / 'report.json'} and {folder / 'scores.png'}")


def test_an_interruption_that_a_library_swallows_is_told(monkeypatch, tmp_path, capsys):
    def swallowing(*_, **__):
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise AttributeError("half imported")

    monkeypatch.setattr(pytest.importorskip("tacfast.commands.work.demo"), "run_demo", swallowing)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        assert cli.main(["demo", "--out", str(tmp_path)]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.endswith("tacfast: interrupted\n")


def test_packages_know_their_modules_and_names_without_having_imported_them():
    code = (
        "import sys, tacfast, tacfast.attacks; names = dir(tacfast); "
        "assert {'scan', 'models', 'solver', '__version__'} <= set(names), names; "
        "assert not {'TYPE_CHECKING', 'lazily', '_lazy'} & set(names), names; "
        "assert 'torch' not in sys.modules; "
        "print(tacfast.solver.solve_tac is tacfast.solve_tac, tacfast.attacks.ATTACKS); "
        "tacfast.nothing"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.startswith("True Registry(badnets, badnets-a2a, blended,")
    assert run.stderr.endswith("AttributeError: module 'tacfast' has no attribute 'nothing'\n")


def test_interrupting_the_import_of_the_commands_is_no_traceback(monkeypatch, capsys):
    class Interrupt:
        def find_spec(self, name, *_):
            if name == "tacfast.commands":
                raise KeyboardInterrupt

    forget(monkeypatch, "nothing")
    monkeypatch.setattr(sys, "meta_path", [Interrupt(), *sys.meta_path])
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "tacfast: interrupted\n"


@pytest.mark.parametrize("module", ["tacfast", "tacfast.cli"])
def test_modules_run_as_programs(module):
    pytest.importorskip("typer")
    run = subprocess.run([sys.executable, "-m", module, "unknown"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "Usage: tacfast" in run.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--seed", "x"],
        ["demo", "--seed", "-1"],
        ["demo", "--seed", str(2**63)],
        ["unknown"],
        ["demo", "--what"],
    ],
)
def test_wrong_usage_is_exit_status_two(arguments):
    pytest.importorskip("typer")
    assert cli.main(arguments) == 2


def test_help_and_the_installed_entry_point(monkeypatch, capsys):
    pytest.importorskip("typer")
    assert cli.main(["--help"]) == 0
    assert "demo" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["tacfast", "demo", "--help"])
    assert cli.main() == 0
    assert "--clean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"asr_before": 0.89}, ["the attack did not take: ASR before is 0.890"]),
        ({"asr_after": 0.051}, ["the backdoor survived: ASR after is 0.051"]),
        ({"acc_after": 0.9599}, ["the repair cost too much"]),
        ({"found": 4}, ["the wrong class was found: 4 instead of 3"]),
        ({"found": None}, ["the backdoor in class 3 was not found"]),
        ({"asr_before": 0.5, "asr_after": 0.4}, ["did not take", "survived"]),
        ({"poisoned": None, "found": None}, []),
        ({"poisoned": None}, ["the clean model was found suspicious (class 3)"]),
    ],
)
def test_promises(changes, words):
    values = {"asr_before": 0.9, "asr_after": 0.05, "acc_after": 0.97, "found": 3, "poisoned": 3} | changes
    after = Metrics(values["acc_after"], values["asr_after"], 0.9)
    report = make_result(found=values["found"]).report
    broken = demo._broken_promises(
        report,
        values["poisoned"],
        Metrics(0.99, values["asr_before"], 0.0),
        after if values["found"] is not None else None,
    )
    assert len(broken) == len(words)
    for text, word in zip(broken, words, strict=True):
        assert word in text


def test_warnings_are_one_line_on_standard_error(pretend, tmp_path, capsys, monkeypatch):
    from tacfast.commands.work import demo as command

    def warn(_):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("loader: expected\nmore \x1b[31m", UserWarning, stacklevel=2)

    pretend(make_result())
    monkeypatch.setattr(command, "prepare_folder", warn)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().err == "tacfast: warning: loader: expected more \ufffd[31m\n"
