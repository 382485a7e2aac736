"""`torchrun -m tacfast …`: two processes come to the result of one, and neither waits for one that is gone."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

pytest.importorskip("typer")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")
pytest.importorskip("torchvision")
if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("needs gloo", allow_module_level=True)

from PIL import Image

from tacfast.data.datasets import load_dataset
from tacfast.training.trained import load_trained

ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",  # another number of threads may change the last bits of logits
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "COLUMNS": "200",
}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
FAST = ("--arch", "small_preact_resnet", "--batch-size", "64", "--precision", "float32")


def python(*arguments, **environment):
    """Exit status, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def both(*code, timeout=120):
    """Run two processes as torchrun would, which does not watch them here; exit status and standard error of each.

    ``code`` is what each does before the command line.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for rank, lines in enumerate(code):
        environment = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
        environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", lines],
                env=ENVIRONMENT | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=timeout)[1] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


def calling(*arguments, before=""):
    """Code that calls the command line, after some other code."""
    return f"{before}\nimport sys\nfrom tacfast import cli\nsys.exit(cli.main({list(map(str, arguments))!r}))"


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network with a backdoor, and more clean images of it than a scan keeps."""
    out = tmp_path_factory.mktemp("network") / "net.safetensors"
    settings = (
        "--arch-args",
        '{"width": 8}',
        "--attack",
        "badnets",
        "--target",
        "3",
        "--epochs",
        "15",
        "--clean",
        "0.4",
    )
    assert python("-m", "tacfast", "train", "--out", out, *FAST, *settings)[0] == 0
    return out


@pytest.fixture(scope="module")
def folder(network):
    """The clean images as files, 30 of each class."""
    dataset = load_dataset("digits")
    images = dataset.data.subset(load_trained(network, dataset).splits.clean)
    for label in range(10):
        for i in (images.labels == label).nonzero().flatten()[:30].tolist():
            path = network.parent / "images" / str(label) / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((images.images[i, 0] * 255).round().byte().numpy()).save(path)
    return network.parent / "images"


def facts_of(path):
    """All that a report says but for what no two runs have in common."""
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in ("created", "timings")}


# ---- scan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [("--batch-size", "32"), ("--batch-size", "1000", "--quick")])
def test_a_scan_by_two_says_what_that_by_one_says(network, tmp_path, more):
    """Also where one of them has nothing to do."""
    command = ("-m", "tacfast", "scan", network, "--data", "digits", *more)
    alone = python(*command, "--json", tmp_path / "alone.json", "--html", tmp_path / "alone.html")
    status, said, errors = python(*TORCHRUN, *command, "--json", tmp_path / "two.json", "--html", tmp_path / "two.html")
    assert facts_of(tmp_path / "two.json") == facts_of(tmp_path / "alone.json")
    assert facts_of(tmp_path / "two.json")["scan"]["samples"] > 500
    assert alone[0] in (0, 3, 4)
    assert status == min(alone[0], 1)  # torchrun makes 1 of whatever is not 0
    assert f"exitcode  : {alone[0]}" in errors or alone[0] == 0
    assert "tacfast: " not in errors

    def plain(text):  # without the bar and what took how long
        return re.sub(r"[\d.]+ s to", "s to", text[text.index("Verdict") :])

    assert plain(said) == plain(alone[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.html", "alone.json", "two.html", "two.json"]


def test_no_process_has_more_than_its_share(network, tmp_path):
    counting = (
        "from tacfast.data.rows import ImageRows\n"
        "real, read = ImageRows.__getitem__, set()\n"
        "def get(self, i):\n"
        "    read.add(self._rows[i])\n"
        "    return real(self, i)\n"
        "ImageRows.__getitem__ = get\n"
        "import atexit, os, json\n"
        f"atexit.register(lambda: open(f'{tmp_path}/' + os.environ['RANK'], 'w').write(json.dumps(sorted(read))))\n"
    )
    code = calling("scan", network, "--data", "digits", "--quick", "--batch-size", "32", before=counting)
    assert len({status for status, _ in both(code, code)}) == 1
    first, second = (set(json.loads((tmp_path / rank).read_text())) for rank in "01")
    assert len(first | second) == 719
    assert len(first & second) == 32  # the very first batch, to look at the model


@pytest.mark.slow
def test_images_that_cannot_be_read_are_counted_once(network, folder, tmp_path):
    for name in ("1/a.png", "8/b.png"):
        (folder / name).write_bytes(b"no image")
    command = ("-m", "tacfast", "scan", network, "--data", folder, "--skip-unreadable", "--batch-size", "32")
    try:
        python(*command, "--json", tmp_path / "alone.json")
        python(*TORCHRUN, *command, "--json", tmp_path / "two.json")
    finally:
        for name in ("1/a.png", "8/b.png"):
            (folder / name).unlink()
    facts = facts_of(tmp_path / "two.json")
    assert facts == facts_of(tmp_path / "alone.json")
    assert facts["source"]["images that could not be read"] == 2


def test_both_end_when_one_cannot_read_an_image(network, folder):
    (folder / "8" / "b.png").write_bytes(b"no image")
    try:
        code = calling("scan", network, "--data", folder, "--batch-size", "32")
        (first, second) = both(code, code)
    finally:
        (folder / "8" / "b.png").unlink()
    assert (first[0], second[0]) == (1, 1)
    assert re.fullmatch(r"tacfast: error: data: expected an image, got \S+b.png: .*\n", second[1])
    assert re.search(
        r"tacfast: error: process 1 failed: ValueError: data: expected an image, got \S+b.png: .*\n$", first[1]
    )
    assert "Traceback" not in first[1] + second[1]


def dying(how):
    """Rank 1 comes to an end, or to a halt, at its third batch."""
    return (
        "import os, signal\n"
        "from tacfast.models import tally\n"
        "real, calls = tally.Tally.update, []\n"
        "def update(self, batch):\n"
        "    calls.append(batch)\n"
        "    if len(calls) == 3 and os.environ['RANK'] == '1':\n"
        f"        {how}\n"
        "    real(self, batch)\n"
        "tally.Tally.update = update\n"
    )


GONE = r"tacfast: error: another process is gone, or did not answer in time; if it said why, that is above\n"


def test_nobody_waits_for_one_that_was_killed(network):
    before = dying("os.kill(os.getpid(), signal.SIGKILL)")
    code = calling("scan", network, "--data", "digits", "--batch-size", "32", before=before)
    (status, said), (killed, nothing) = both(code, code)
    assert killed == -signal.SIGKILL
    assert nothing == ""
    assert status == 1
    assert re.search(GONE + "$", said)
    assert "Traceback" not in said


@pytest.mark.slow
def test_nobody_waits_for_long_for_one_that_hangs(network):
    soon = (
        "from datetime import timedelta\nfrom tacfast.commands.work import joined\n"
        "joined.TIMEOUT = timedelta(seconds=5)\n"
    )
    before = dying("import time; time.sleep(12)")
    code = calling("scan", network, "--data", "digits", "--batch-size", "32", before=soon + before)
    (status, said), (other, _) = both(code, code)
    assert (status, other) == (1, 1)
    assert re.search(GONE + "$", said)
    assert "Traceback" not in said


def test_torchrun_ends_when_one_is_killed(network, tmp_path):
    script = tmp_path / "script.py"
    before = dying("os.kill(os.getpid(), signal.SIGKILL)")
    script.write_text(calling("scan", network, "--data", "digits", "--batch-size", "32", before=before))
    status, _, errors = python(*TORCHRUN, script)
    assert status == 1
    assert "Signal 9 (SIGKILL)" in errors
    # Nor is there a traceback but torchrun's own.
    assert set(re.findall(r"^(\w\S*Error): ", errors, re.M)) <= {
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError"
    }


def test_wrong_usage_is_said(network, tmp_path):
    code = calling("scan", network, network, "--data", "digits", "--out", tmp_path / "many")
    for status, said in both(code, code):
        assert status == 2
        assert "expected one process, got 2" in said


# Rank 1 cannot read on after so many batches.
FAILING = """
import os
from tacfast.data import FolderLoader
real = FolderLoader.__iter__
def read(self):
    for number, batch in enumerate(real(self)):
        if number == 3 and os.environ['RANK'] == '1':
            raise OSError('the disk fails')
        yield batch
FolderLoader.__iter__ = read
"""
COUNTING = """
import atexit, os
from tacfast.models import tally
real, calls = tally.Tally.update, []
tally.Tally.update = lambda self, batch: (calls.append(len(batch.logits)), real(self, batch))
atexit.register(lambda: print('ran on', sum(calls), file=sys.stderr))
"""


def test_an_interrupted_scan_goes_on(network, tmp_path):
    command = ("scan", network, "--data", "digits", "--batch-size", "32")
    resumed = (*command, "--resume", tmp_path / "state", "--json", tmp_path / "resumed.json")
    (first, _), (second, said) = both(*[calling(*resumed, before=FAILING)] * 2)
    assert (first, second) == (1, 1)
    assert said == "tacfast: error: the disk fails\n"
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"state.0-of-2", "state.1-of-2", "resumed.json"}  # where the error stands
    counts = [
        int(re.search(r"^ran on (\d+)$", said, re.M)[1]) for _, said in both(*[calling(*resumed, before=COUNTING)] * 2)
    ]
    assert counts == [0, 719 - 11 * 32 - 3 * 32]  # the rest of the share of rank 1
    python("-m", "tacfast", *command, "--json", tmp_path / "alone.json")
    assert facts_of(tmp_path / "resumed.json") == facts_of(tmp_path / "alone.json")
    assert {path.name for path in tmp_path.iterdir()} == {"resumed.json", "alone.json"}


@pytest.mark.parametrize(
    ("failure", "told", "said"),
    [
        ("OSError('the disk is full')", r"tacfast: error: the disk is full\n$", GONE),
        ("BrokenPipeError(errno.EPIPE, 'nobody reads on')", r"^(?!.*tacfast: error)", ""),  # Typer makes status 1 of it
    ],
)
def test_nothing_kept_is_lost_where_the_report_cannot_be_written(network, tmp_path, failure, told, said):
    full = (
        "import errno\n"
        "from tacfast.commands.work import scan\n"
        "def write_json(*_):\n"
        f"    raise {failure}\n"
        "scan.write_json = write_json\n"
    )
    command = ("scan", network, "--data", "digits", "--resume", tmp_path / "state", "--json", tmp_path / "scan.json")
    (first, by_first), (second, by_second) = both(*[calling(*command, before=full)] * 2)
    assert (first, second) == (1, 1)
    assert re.search(told, by_first)
    assert re.fullmatch(said, by_second)
    assert {path.name for path in tmp_path.iterdir()} == {"state.0-of-2", "state.1-of-2"}
    for status, counted in both(*[calling(*command, before=COUNTING)] * 2):
        assert status in (0, 3, 4)
        assert re.search(r"^ran on 0$", counted, re.M)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.json"]


# ---- train and repair ---------------------------------------------------------------------------------------------


def test_a_training_by_two(tmp_path):
    """Killed, it goes on where it was; one process writes."""
    out = tmp_path / "net.safetensors"
    command = ("train", "--out", out, *FAST, "--arch-args", '{"width": 8}', "--attack", "badnets", "--epochs", "6")
    killed = (
        "import os, signal\n"
        "from tacfast.training import loop\n"
        "real = loop._Training._run_epoch\n"
        "def run(self, on_step):\n"
        "    if len(self._history) == 4 and os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(self, on_step)\n"
        "loop._Training._run_epoch = run\n"
    )
    (status, said), (other, _) = both(*[calling(*command, before=killed)] * 2)
    assert (status, other) == (1, -signal.SIGKILL)
    assert re.search(GONE + "$", said)
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors.state"]
    status, said, errors = python(*TORCHRUN, "-m", "tacfast", *command)
    assert (status, re.findall(r"epoch (\d):", said)) == (0, ["5", "6"]), errors
    assert re.search(r"ACC [\d.]+ %, ASR [\d.]+ % on 449 test images; wrote", said)
    assert re.findall("tacfast: .*", errors) == [f"tacfast: going on after epoch 4, from {out}.state"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.json", "net.safetensors"]
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["metrics"]["acc"] > 0.8
    assert len(found["provenance"]["history"]) == 6


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux shows them")
def test_no_thread_of_the_group_outlives_it(tmp_path):
    """One that is caught at work when Python ends aborts the process, once in many runs."""
    left = (
        "import atexit\n"
        "from pathlib import Path\n"
        "names = lambda: {path.read_text().strip() for path in Path('/proc/self/task').glob('*/comm')}\n"
        "atexit.register(lambda: print('left', [name for name in names() if 'gloo' in name], file=sys.stderr))\n"
    )
    code = calling("train", "--out", tmp_path / "net.safetensors", *FAST, "--epochs", "1", before=left)
    for status, said in both(code, code):
        assert status == 0
        assert said.endswith("left []\n")


def test_a_repair_by_two(network, tmp_path):
    """It may end a little differently, as its network has BatchNorm; one process writes."""
    out, told = tmp_path / "repaired.safetensors", tmp_path / "repair.json"
    command = ("repair", network, "--data", "digits", "--out", out, "--json", told, "--resume", tmp_path / "state")
    killed = (
        "import os, signal\n"
        "from tacfast.defenses import training\n"
        "real = training.Training._run_epoch\n"
        "def run(self):\n"
        "    if len(self.history) == 2 and os.environ['RANK'] == '0':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(self)\n"
        "training.Training._run_epoch = run\n"
    )
    (killed, _), (status, said) = both(*[calling(*command, before=killed)] * 2)
    assert (status, killed) == (1, -signal.SIGKILL)
    assert re.fullmatch(GONE, said)
    kept = sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock")
    assert kept == ["state.lr0.01", "state.scan.0-of-2", "state.scan.1-of-2"]
    status, said, errors = python(*TORCHRUN, "-m", "tacfast", *command)
    assert re.search(r"wrote \S+repaired.safetensors, of epoch \d at learning rate", said), errors
    assert "Traceback" not in errors[: errors.find("torch/distributed")]
    facts = json.loads(told.read_text())
    assert facts["repair"]["confirmation"]["outcome"] == "confirmed"
    assert facts["attack"]["before"]["asr"] > 0.8
    assert facts["attack"]["after"]["asr"] < 0.1
    assert status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repair.json", "repaired.json", "repaired.safetensors"]
