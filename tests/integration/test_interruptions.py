"""`tacfast scan` and `tacfast repair` killed at random moments, interrupted, and with their folders gone."""

import errno
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("safetensors")
pytest.importorskip("typer")
pytest.importorskip("torchvision")
pytest.importorskip("fcntl")

from processes import ENVIRONMENT, Process
from suspects import MODEL, PIXELS, write_suspect

from tacfast import cli
from tacfast.commands.work import many
from tacfast.demo import make_trial
from tacfast.models.architectures import SmallPreActResNet

pytestmark = pytest.mark.usefixtures("one_thread")

KILLS = [2, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])]
# Small batches, so that there is time to be interrupted in.
SCAN = ("scan", "--batch-size", "2")
REPAIR = ("repair", "--batch-size", "16", "--epochs", "6")


@pytest.fixture(scope="module")
def suspect(tmp_path_factory):
    return write_suspect(tmp_path_factory.mktemp("suspect"), make_trial(seed=1))


def command(suspect, name, *options):
    return [sys.executable, "-m", "tacfast", name, suspect / "model.pth", "--data", suspect / "images", *options,
            *MODEL, *PIXELS]  # fmt: skip


def without_times(path):
    """A report but for what differs from run to run."""
    text = re.sub(r'"(created|seconds)": [^,\n]*', "", path.read_text())
    return re.sub(r'"timings": \{.*?\}', "", text, flags=re.DOTALL)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- SIGKILL ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize(
    ("options", "kept", "outputs"),
    [
        (SCAN, "--resume", ("--html", "a.html", "--json", "a.json")),
        (REPAIR, "--resume", ("--json", "a.json", "--out", "b.safetensors")),
    ],
    ids=["scan", "repair"],
)
def test_killed_and_resumed_it_comes_to_the_same(suspect, tmp_path, options, kept, outputs, kills):
    draw, killed, number = random.Random(kills), 0, 0

    def run(folder, *more):
        folder.mkdir(exist_ok=True)
        written = [folder / each if "." in each else each for each in outputs]
        return Process(command(suspect, *options, *written, *more), tmp_path / "log")

    start = time.monotonic()
    process = run(tmp_path / "whole")
    assert process.finish(600)
    status, duration = process.popen.returncode, time.monotonic() - start
    expected = files(tmp_path / "whole")
    while killed < kills:
        folder, number, reached, first = tmp_path / f"{number}", number + 1, {}, True
        while first or process.popen.returncode == -signal.SIGKILL:
            process = run(folder, kept, folder / "state")
            if killed == kills:
                assert process.finish(600)
            elif draw.random() < 0.3:
                process.finish(draw.uniform(0, duration))
            else:  # while something is written, or just before or after that
                process.wait_for_changes(folder, draw.randint(1, 10))
                process.finish(draw.choice([0, 0, draw.uniform(0, 0.3)]))
            if process.popen.poll() is None:
                process.kill()
                killed += 1
            # What was kept once is not lost again, of the samples and of the epochs of each training.
            for n, path in re.findall(r"going on after \D*(\d+)[^,]*, from (\S+)", process.text):
                assert int(n) >= reached.get(path, 1)
                reached[path] = int(n)
            first = False
            if (folder / "a.json").exists():  # the last of the results: what is kept may be deleted by now
                reached.clear()
        assert process.popen.returncode == status, process.text
        assert "Traceback" not in process.text
        assert without_times(folder / "a.json") == without_times(tmp_path / "whole" / "a.json")
        found = files(folder)
        assert found.keys() == expected.keys()  # nothing is left of what was half written
        for name, content in expected.items():
            assert found[name] == content or name in ("a.json", "a.html")


# ---- Ctrl-C -----------------------------------------------------------------------------------------------------


@pytest.fixture
def at_call(monkeypatch):
    """Let something happen when the network runs for the n-th time, in evaluation or in training."""

    def at_call(number, action, *, training=False):
        forward, left = SmallPreActResNet.forward, [number]

        def counted(self, x):
            left[0] -= self.training == training
            if left[0] == 0:
                left[0] = -1
                action()
            return forward(self, x)

        monkeypatch.setattr(SmallPreActResNet, "forward", counted)

    return at_call


def interrupt():
    raise KeyboardInterrupt


def run(capsys, suspect, name, *options):
    """Exit status, and the lines on standard error."""
    capsys.readouterr()
    arguments = [*command(suspect, name, *options)[3:]]
    status = cli.main(list(map(str, arguments)))
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return status, err.splitlines()


def test_an_interrupted_scan_says_what_is_kept_and_where_it_goes_on(suspect, tmp_path, capsys, at_call):
    state = tmp_path / "state"
    options = ("--batch-size", "64", "--quick", "--resume", state)
    at_call(4, interrupt)  # the first two calls are of the first batch, to find the head
    kept, *rest = run(capsys, suspect, "scan", *options)[1]
    assert re.fullmatch(rf"tacfast: \d+ samples are kept in {state}: do the same again to go on from there", kept)
    assert rest == ["tacfast: interrupted"]
    count = re.search(r"\d+", kept).group()
    status, lines = run(capsys, suspect, "scan", *options)
    assert (status, lines) == (3, [f"tacfast: going on after {count} samples, from {state}"])
    at_call(4, interrupt)
    assert run(capsys, suspect, "scan", *options, "--quiet") == (130, ["tacfast: interrupted"])
    assert run(capsys, suspect, "scan", *options, "--quiet") == (3, [])
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_repair_says_so_too(suspect, tmp_path, capsys, at_call):
    options = ("--epochs", "2", "--target", "5", "--mode", "universal", "--out", tmp_path / "a.pth")
    options += ("--resume", tmp_path / "state", "--max-drop", "1")
    at_call(15, interrupt, training=True)  # 11 steps are an epoch
    lines = run(capsys, suspect, "repair", *options)[1]
    first = tmp_path / "state.lr0.01"
    assert lines == [
        f"tacfast: epoch 1 is kept in {first}: do the same again to go on from there",
        "tacfast: interrupted",
    ]
    lines = run(capsys, suspect, "repair", *options)[1]
    assert f"tacfast: going on after epoch 1, from {first}" in lines
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_an_interrupted_scan_of_many_models_too(suspect, tmp_path, capsys, at_call, monkeypatch):
    shutil.copy(suspect / "model.pth", tmp_path / "b.pth")
    out = tmp_path / "out"
    options = (tmp_path / "b.pth", "--quick", "--out", out)
    write = many._write_summary

    def interrupted(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(many, "_write_summary", interrupted)
        lines = run(capsys, suspect, "scan", *options)[1]
    assert lines == [
        f"tacfast: 1 of 2 models are kept in {out}: do the same again to go on from there",
        "tacfast: interrupted",
    ]
    assert run(capsys, suspect, "scan", *options)[0] == 3
    assert len(list(out.iterdir())) == 6


# ---- the disk, the folders and other processes ------------------------------------------------------------------


@pytest.mark.parametrize("options", [("scan", "--resume", "state"), ("repair", "--resume", "state", "--out", "a.pth")])
def test_a_full_disk_is_one_line(suspect, tmp_path, options):
    """No file may be larger than a few bytes, as where there is no room."""
    (tmp_path / "a.pth").write_bytes(b"precious")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    done = subprocess.run(
        list(map(str, command(suspect, *options))),
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
        preexec_fn=limit,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"tacfast: error: .*File too large: '.*state[^\n]*'\n", done.stderr)
    assert files(tmp_path) == {"a.pth": b"precious"}


def test_a_disk_that_fills_up_costs_no_more_than_the_report(suspect, tmp_path, capsys, monkeypatch):
    state, write = tmp_path / "state", Path.write_bytes

    def full(self, content):
        if content.lstrip().startswith(b"{"):  # the report
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write(self, content)

    options = ("--quick", "--resume", state, "--json", tmp_path / "a.json")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        status, (line,) = run(capsys, suspect, "scan", *options)
    assert status == 1
    assert line == f"tacfast: error: [Errno 28] No space left on device: '{tmp_path / 'a.json'}'"
    assert list(files(tmp_path)) == ["state"]
    status, (line,) = run(capsys, suspect, "scan", *options)
    assert (status, line) == (3, f"tacfast: going on after 449 samples, from {state}")
    assert list(files(tmp_path)) == ["a.json"]


@pytest.mark.parametrize("name", ["scan", "repair", "many"])
def test_a_folder_of_results_that_vanishes_is_one_line(suspect, tmp_path, capsys, at_call, name):
    gone = tmp_path / "gone"
    gone.mkdir()
    options = {
        "scan": ("scan", "--resume", gone / "state", "--json", gone / "a.json", "--quick"),
        "repair": ("repair", "--resume", gone / "state", "--out", gone / "a.pth", "--epochs", "1"),
        "many": ("scan", "--out", gone, "--quick"),
    }[name]
    at_call(4, lambda: shutil.rmtree(gone))
    status, (line,) = run(capsys, suspect, *options)
    assert status == 1
    assert line.startswith(f"tacfast: error: path: expected a file in an existing folder, got {gone}/")
    assert not gone.exists()


@pytest.mark.parametrize("more", [(), ("--skip-unreadable",), ("--workers", "1")], ids=["", "skip", "workers"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_images_that_vanish_are_one_line(suspect, tmp_path, capsys, at_call, more):
    shutil.copytree(suspect, tmp_path / "suspect")
    at_call(4, lambda: shutil.rmtree(tmp_path / "suspect" / "images"))
    options = ("--batch-size", "16", "--resume", tmp_path / "state", *more)
    status, (line,) = run(capsys, tmp_path / "suspect", "scan", *options)
    assert status == 1
    assert re.fullmatch(
        r"tacfast: error: data: expected an image, got .*: \[Errno 2\] No such file or directory: .*", line
    )
    assert (tmp_path / "state").exists()


@pytest.fixture
def other_process():
    """Let another process work with a file for as long as the test takes."""
    with ExitStack() as stack:

        def work_with(path):
            code = "import sys; from tacfast._files import only_process\n"
            code += "with only_process(sys.argv[1], ''): print(); input()"
            other = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", code, path], stdin=-1, stdout=-1, env=ENVIRONMENT)
            )
            stack.callback(other.kill)
            other.stdout.readline()

        yield work_with


def test_two_processes_do_not_work_with_the_same_files(suspect, tmp_path, capsys, other_process):
    for file, options in {
        "out/summary.jsonl": ("scan", "--out", tmp_path / "out"),
        "state": ("scan", "--resume", tmp_path / "state"),
        "kept": ("repair", "--resume", tmp_path / "kept", "--out", tmp_path / "a.pth"),
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        other_process(tmp_path / file)
        status, (line,) = run(capsys, suspect, *options)
        assert status == 1
        assert re.fullmatch(rf"tacfast: error: \S+ another process works with {tmp_path / file}, wait for it", line)
