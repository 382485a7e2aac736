import dataclasses
import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from tacfast import find_head, scan, solve_tac
from tacfast.models import latent_batches, tally
from tacfast.models.tally import Tally
from tacfast.solver import GapMatrix

pytestmark = pytest.mark.skipif(importlib.util.find_spec("safetensors") is None, reason="needs the extra io")

CLASSES = 5


class Counting(nn.Sequential):
    """A classifier that counts the samples that it ran on, and fails where it is told to."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))
        self.samples, self.calls, self.fail_at = 0, 0, None

    def forward(self, x):
        if self.calls == self.fail_at:
            raise RuntimeError("the model fails")
        self.calls += 1
        self.samples += len(x)
        return super().forward(x)


def samples(seed=1, n=120):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator), torch.randint(CLASSES, (n,), generator=generator)


def batches(size=10, seed=1):
    inputs, labels = samples(seed)
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def failing(after, error, size=10):
    """A loader that fails after some batches."""
    yield from batches(size)[:after]
    raise error


def equal(a, b):
    """Whether two reports are the same, to the bit, but for the timings."""
    assert a.verdict == b.verdict
    assert (a.accuracy, a.fingerprint) == (b.accuracy, b.fingerprint)
    pairs = [(vars(a.solution), vars(b.solution)), (vars(a.solution.certificate), vars(b.solution.certificate))]
    for one, other in pairs:
        for name, value in one.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other[name]), name
            elif not dataclasses.is_dataclass(value):
                assert value == other[name], name
    return True


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scan.safetensors"


@pytest.mark.parametrize("error", [OSError("the disk fails"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("named", [False, True])
def test_an_interrupted_scan_goes_on_where_it_was(path, error, named):
    model = Counting()
    expected = scan(model, batches(), quick=True)
    head = find_head(model, samples()[0]) if named else None
    with pytest.raises(type(error)):
        scan(model, failing(7, error), head=head, resume=path, quick=True)
    assert path.exists()
    model.samples, seen = 0, []
    report = scan(model, batches(), head=head, resume=path, on_batch=seen.append, quick=True)
    assert seen == [80, 90, 100, 110, 120]
    # Again the first batch, to know the model and the samples by, and without a head to find it.
    assert model.samples == 50 + 10 + (0 if named else 10)
    assert equal(report, expected)
    assert not path.exists()


def test_it_may_be_interrupted_twice_and_the_model_may_fail(path):
    model = Counting()
    expected = scan(model, batches())
    for calls in (4, 6):
        model.calls, model.fail_at = 0, calls
        with pytest.raises(RuntimeError, match="the model fails"):
            scan(model, batches(), resume=path)
        assert path.exists()
    model.fail_at = None
    assert equal(scan(model, batches(), resume=path), expected)


def test_a_killed_scan_goes_on_from_the_last_write(path, monkeypatch):
    model = Counting()
    expected = scan(model, batches())
    monkeypatch.setattr(tally, "SAVE_FACTOR", 0)

    def killed(seen):
        if seen == 60:  # as if by a signal, half-way through a batch: what is in the file then must not be used
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(model, batches(), resume=path, on_batch=killed)
    model.samples, seen = 0, []
    assert equal(scan(model, batches(), resume=path, on_batch=seen.append), expected)
    assert seen[0] == 60  # five batches were in the file, the sixth is counted once


def test_a_scan_that_is_killed_while_it_judges_has_seen_everything(path, monkeypatch):
    model = Counting()
    expected = scan(model, batches(), quick=True)
    monkeypatch.setattr(tally, "SAVE_FACTOR", 10**9)  # after the first batch nothing is written now and then
    with monkeypatch.context() as patch:
        patch.setattr("tacfast.scanning.leave_blocks_out", interrupt)
        with pytest.raises(KeyboardInterrupt):
            scan(model, batches(), resume=path, quick=True)
    model.samples = 0
    assert equal(scan(model, batches(), resume=path, quick=True), expected)
    assert model.samples == 20  # the first batch: to find the head, and to know the model by
    assert not path.exists()


def interrupt(*_):
    raise KeyboardInterrupt


def test_what_is_kept_and_where_it_goes_on_is_told(path, caplog):
    caplog.set_level("INFO", "tacfast.resuming")
    scan(Counting(), batches(), resume=path, quick=True)
    assert caplog.messages == []
    with pytest.raises(KeyboardInterrupt):
        scan(Counting(), failing(7, KeyboardInterrupt()), resume=path, quick=True)
    scan(Counting(), batches(), resume=path, quick=True)
    assert caplog.messages == [
        f"70 samples are kept in {path}: do the same again to go on from there",
        f"going on after 70 samples, from {path}",
    ]


def test_two_processes_do_not_share_a_file(path):
    code = f"from tacfast._files import only_process\nwith only_process({str(path)!r}, 'x'): print(); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(BlockingIOError, match=r"resume: another process works with .*, wait for it"):
            scan(Counting(), batches(), resume=path)
        other.kill()
    scan(Counting(), batches(), resume=path)  # its lock is gone with it
    assert list(path.parent.iterdir()) == []


def test_what_is_looked_at_again_is_the_same_too(path):
    """Inputs are kept of a whole pass: also of those samples that the model does not run on a second time."""
    model = Counting()
    expected = scan(model, batches())
    assert expected.verdict.rule == "full"
    with pytest.raises(KeyboardInterrupt):
        scan(model, failing(7, KeyboardInterrupt()), resume=path)
    assert equal(scan(model, batches(), resume=path), expected)


def test_the_file_of_another_version_is_refused(interrupted, path):
    from safetensors import safe_open
    from safetensors.torch import load, save

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert list(metadata) == [tally.FORMAT] == ["tacfast.scan.2"]
    path.write_bytes(save(load(path.read_bytes()), {"tacfast.scan.1": metadata[tally.FORMAT]}))
    with pytest.raises(ValueError, match="what an interrupted scan left"):
        scan(interrupted, batches(), resume=path)


def test_another_batch_size_is_fine(path):
    model = Counting()
    with pytest.raises(OSError, match="fails"):
        scan(model, failing(4, OSError("the disk fails")), resume=path)
    report = scan(model, batches(7), resume=path)
    expected = scan(model, batches())
    assert report.solution.n_samples == 120
    assert report.accuracy == expected.accuracy
    assert torch.allclose(report.solution.norms, expected.solution.norms, rtol=1e-4)


def test_without_labels(path):
    model, inputs = Counting(), samples()[0]

    def interrupted():
        yield from inputs.split(10)[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(model, interrupted(), resume=path)
    assert equal(scan(model, inputs.split(10), resume=path), scan(model, inputs.split(10)))


@pytest.fixture
def interrupted(path):
    model = Counting()
    with pytest.raises(KeyboardInterrupt):
        scan(model, failing(7, KeyboardInterrupt()), resume=path)
    return model


def test_another_model_loader_or_head_is_refused_and_the_file_stays(interrupted, path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"resume: .* cannot be taken up: .* of another head"):
        scan(Counting(seed=3), batches(), resume=path)
    with pytest.raises(ValueError, match=r"resume: expected the model .* in the same order.* differ"):
        scan(interrupted, batches(seed=2), resume=path)
    other_body = Counting(seed=3)
    other_body[3].load_state_dict(interrupted[3].state_dict())
    with pytest.raises(ValueError, match=r"resume: expected the model .* in the same order.* differ"):
        scan(other_body, batches(), resume=path)
    with pytest.raises(ValueError, match="loader: expected the 70 samples that were seen before, got 30"):
        scan(interrupted, batches()[:3], resume=path)
    assert path.read_bytes() == before
    assert scan(interrupted, batches(), resume=path).solution.n_samples == 120


def test_a_file_of_something_else_is_refused_and_stays(path, interrupted):
    whole = path.read_bytes()
    solution = solve_tac(torch.randn(20, 4), torch.randn(3, 4))
    for content in (b"", b"precious", whole[:-9], whole[:100]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"resume: .* cannot be taken up: .* what an interrupted scan left"):
            scan(interrupted, batches(), resume=path)
        assert path.read_bytes() == content
    solution.save(path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"cannot be taken up: .* what an interrupted scan left"):
        scan(interrupted, batches(), resume=path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("counts"), "what an interrupted scan left"),
        (lambda tensors: tensors.pop("logits.1"), "what an interrupted scan left"),
        (lambda tensors: tensors["counts"].add_(1), "counts: expected int64"),
        (
            lambda tensors: tensors.update(first_logits=torch.zeros(0, CLASSES)),
            "first_logits: expected shape",
        ),
        (lambda tensors: tensors.update(gaps=torch.zeros(2, 2)), "gaps"),
        (lambda tensors: tensors["first_logits"].fill_(torch.nan), "in the same order"),
    ],
)
def test_a_changed_file_is_refused(interrupted, path, change, message):
    from safetensors import safe_open
    from safetensors.torch import load, save

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load(path.read_bytes())
    change(tensors)
    path.write_bytes(save(tensors, metadata))
    with pytest.raises(ValueError, match=message):
        scan(interrupted, batches(), resume=path)


def test_the_folder_must_exist_and_a_folder_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="resume: expected a file in an existing folder"):
        scan(Counting(), batches(), resume=tmp_path / "nowhere" / "scan.safetensors")
    with pytest.raises(IsADirectoryError, match="resume: expected a file, got the folder"):
        scan(Counting(), batches(), resume=tmp_path)


def test_without_safetensors_the_error_names_the_extra(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"tacfast\[io\]"):
        scan(Counting(), batches(), resume=path)
    assert scan(Counting(), batches()).solution.n_samples == 120


def test_a_failed_write_leaves_the_old_file(interrupted, path, monkeypatch):
    before = path.read_bytes()

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        scan(interrupted, failing(9, KeyboardInterrupt()), resume=path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_by_hand_from_a_saved_gap_matrix(tmp_path):
    model, loader = Counting().eval(), batches()
    head = find_head(model, samples()[0])
    expected = GapMatrix(head.weight, head.bias)
    with latent_batches(model, loader, head) as all_of_them:
        for batch in all_of_them:
            expected.update(batch.latents)
            if expected.n_samples == 50:
                torch.save(expected.state_dict(), tmp_path / "gaps.pt")
    gaps = GapMatrix(head.weight, head.bias)
    gaps.load_state_dict(torch.load(tmp_path / "gaps.pt", weights_only=True))
    model.samples = 0
    with latent_batches(model, loader, head, skip=gaps.n_samples) as rest:
        for batch in rest:
            gaps.update(batch.latents)
    assert model.samples == 70
    assert torch.equal(gaps.gaps, expected.gaps)


def test_skipped_samples_may_end_within_a_batch():
    model = Counting().eval()
    inputs, labels = samples()
    head = find_head(model, inputs)
    for skip in (0, 1, 10, 119, 120):
        with latent_batches(model, batches(), head, skip=skip) as some:
            found = list(some)
        assert torch.equal(torch.cat([batch.labels for batch in found] or [labels[:0]]), labels[skip:])
    with latent_batches(model, batches(), head, skip=121) as some, pytest.raises(ValueError, match=r"121 .*, got 120"):
        next(some)


def test_counts_per_class():
    model = Counting().eval()
    inputs, labels = samples()
    seen = Tally(head := find_head(model, inputs))
    with latent_batches(model, batches(), head) as some:
        for batch in some:
            seen.update(batch)
    answers = model(inputs).argmax(1)
    for k in range(CLASSES):
        assert seen.gaps.samples_per_class[k] == int((answers == k).sum())
        assert seen.labelled[k] == int((labels == k).sum())
        assert seen.correct[k] == int(((answers == k) & (labels == k)).sum())
