import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tacfast import extract_latents, find_head, scan
from tacfast.models import HeadError, latent_batches
from tacfast.models.architectures import SmallPreActResNet
from tacfast.models.latents import split_batch


def mlp(classes=4, bias=True):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, classes, bias=bias)
    )


def batches(sizes=(7, 7, 3), labels=True, classes=4):
    generator = torch.Generator().manual_seed(1)
    xs = [torch.randn(n, 6, generator=generator) for n in sizes]
    return [(x, torch.randint(classes, (len(x),), generator=generator)) if labels else x for x in xs]


class Wrapped(nn.Module):
    """An MLP whose output passes through ``after``; the head is followed by an unused layer in registration order."""

    def __init__(self, after):
        super().__init__()
        self.head = nn.Linear(6, 4)
        self.body = nn.Linear(6, 6)
        self.unused = nn.Linear(2, 2)
        self.after = after

    def forward(self, x):
        return self.after(self.head(F.relu(self.body(x))))


def state(model):
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return [module.training for module in model.modules()], hooks


def test_finds_the_last_layer_that_runs_not_the_last_that_is_registered():
    model = Wrapped(nn.Identity())
    head = find_head(model, torch.randn(3, 6))
    assert head.name == "head"
    assert head.module is model.head
    assert (head.num_classes, head.weight.shape, head.bias.shape) == (4, (4, 6), (4,))
    assert not head.weight.requires_grad


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: __import__("torchvision").models.resnet18(num_classes=7), "fc"),
        (lambda: __import__("torchvision").models.mobilenet_v3_small(num_classes=7), "classifier.3"),
        (lambda: __import__("timm").create_model("vit_tiny_patch16_224", img_size=32, num_classes=7), "head"),
        (lambda: nn.DataParallel(SmallPreActResNet(7, 3)), "module.linear"),
    ],
)
def test_finds_the_head_of_known_architectures(build, name):
    try:
        model = build()
    except ImportError as error:
        pytest.skip(str(error))
    images = torch.randn(2, 3, 32, 32)
    head = find_head(model, images)
    assert head.name == name
    found = extract_latents(model, [images])
    assert torch.allclose(found.logits, model.eval()(images), atol=1e-5)


def test_a_name_can_be_given_and_is_checked():
    model = Wrapped(nn.Identity())
    assert find_head(model, torch.randn(3, 6), name="head").name == "head"
    with pytest.raises(HeadError, match=r"differ by up to|expected the model's output to be"):
        find_head(model, torch.randn(3, 6), name="body")
    with pytest.raises(HeadError, match="'after': a Identity"):
        find_head(model, torch.randn(3, 6), name="after")
    with pytest.raises(HeadError, match=r"\(head, body, unused\), got 'nowhere': no such layer"):
        find_head(model, torch.randn(3, 6), name="nowhere")
    with pytest.raises(HeadError, match="none of its linear layers ran"):
        find_head(model, torch.randn(3, 6), name="unused")


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (nn.Softmax(1), "ends in a softmax"),
        (nn.LogSoftmax(1), "ends in a softmax"),
        (nn.Tanh(), "something changes the logits"),
        (lambda logits: logits[:, :3], r"output of shape \(3, 4\), got \(3, 3\)"),
        (lambda logits: {"logits": logits}, "one tensor of logits .* got dict"),
    ],
)
def test_says_what_differs(after, message):
    with pytest.raises(HeadError, match=message):
        find_head(Wrapped(after), torch.randn(3, 6))


def test_a_modified_linear_layer_is_noticed():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(HeadError, match="not weight @ latents"):
        find_head(nn.Sequential(Doubled(6, 4)), torch.randn(3, 6))


def test_latents_must_be_one_row_per_input():
    with pytest.raises(HeadError, match=r"one row per input, got \(3, 2, 6\)"):
        find_head(nn.Sequential(nn.Linear(6, 4)), torch.randn(3, 2, 6))


@pytest.mark.parametrize(
    ("model", "batch", "error", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten()), torch.randn(2, 1, 1, 1), HeadError, "Sequential has none"),
        ("model", torch.randn(2, 6), TypeError, "model: expected a torch.nn.Module, got str"),
        (nn.Linear(6, 4), [1.0], TypeError, "batch: expected a torch.Tensor"),
        (nn.Linear(6, 4), torch.randn(0, 6), ValueError, "at least one input"),
    ],
)
def test_bad_input_to_find_head(model, batch, error, message):
    with pytest.raises(error, match=message):
        find_head(model, batch)


def test_latents_times_head_are_the_logits_of_the_model():
    model, loader = mlp(), batches()
    found = extract_latents(model, loader)
    model.eval()
    with torch.no_grad():
        expected = torch.cat([model(x) for x, _ in loader])
        inner = torch.cat([model[:4](x) for x, _ in loader])
    assert torch.equal(found.logits, expected)
    assert torch.equal(found.latents, inner)
    assert torch.equal(found.labels, torch.cat([y for _, y in loader]))
    assert found.head.name == "4"
    assert not found.latents.requires_grad


def test_keyword_call_of_the_head_is_seen():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x):
            return self.fc(input=x)

    x = torch.randn(3, 6)
    assert torch.equal(extract_latents(Keyword(), [x]).latents, x)


def test_modes_hooks_and_gradients_are_restored():
    model = mlp()
    model.train()
    model[1].eval()
    before = state(model)
    extract_latents(model, batches())
    scan(mlp(), batches((60,)))
    assert state(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_modes_and_hooks_are_restored_after_an_exception():
    model = mlp()
    before = state(model)
    statistics = model[1].running_mean.clone()
    with pytest.raises(RuntimeError):
        extract_latents(model, [torch.randn(3, 6), torch.randn(3, 5)])
    with pytest.raises(RuntimeError):
        find_head(model, torch.randn(3, 5))
    head = find_head(model, torch.randn(2, 6))
    with pytest.raises(KeyboardInterrupt), latent_batches(model, batches(), head) as some:  # noqa: PT012
        next(some)
        raise KeyboardInterrupt
    assert state(model) == before
    assert torch.equal(model[1].running_mean, statistics)


def test_an_iterator_loses_no_batch():
    loader = batches()
    expected = extract_latents(mlp(), loader)
    assert torch.equal(extract_latents(mlp(), iter(loader)).latents, expected.latents)
    assert scan(mlp(), iter(batches((30, 30)))).solution.n_samples == 60


def test_loaders_without_labels():
    found = extract_latents(mlp(), batches(labels=False))
    assert found.labels is None
    assert torch.equal(found.latents, extract_latents(mlp(), [(x,) for x in batches(labels=False)]).latents)


def test_a_head_found_before_or_named_is_used():
    model = mlp()
    head = find_head(model, torch.randn(2, 6))
    assert extract_latents(model, batches(), head).head is head
    assert extract_latents(model, batches(), "4").head.name == "4"
    with pytest.raises(HeadError, match="did not"):
        extract_latents(mlp(), batches(), head)


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        ([], ValueError, "at least one batch, got none"),
        ([{"x": 1}], TypeError, r"got \(dict\)"),
        ([(torch.randn(2, 6), [0, 1])], TypeError, r"got \(Tensor, list\)"),
        ([(torch.randn(2, 6), torch.zeros(2).long(), 0)], TypeError, "inputs, labels"),
        ([torch.randn(0, 6)], ValueError, "at least one input"),
        ([(torch.randn(2, 6), torch.tensor([0, 4]))], ValueError, "labels 0 to 3, the classes of the head, got 4"),
        ([(torch.randn(2, 6), torch.tensor([-1, 1]))], ValueError, "got -1"),
        ([(torch.randn(2, 6), torch.rand(2))], ValueError, "integer label .* got torch.float32"),
        ([(torch.randn(2, 6), torch.zeros(3).long())], ValueError, r"shape \(2,\), got torch.int64 of shape \(3,\)"),
        ([(torch.randn(2, 6), torch.tensor([0, 1])), torch.randn(2, 6)], ValueError, "got 1 of 2"),
    ],
)
def test_bad_loaders(loader, error, message):
    with pytest.raises(error, match=message):
        extract_latents(mlp(), loader)


def test_nothing_left_after_the_head_was_found():
    model = mlp()
    head = find_head(model, torch.randn(2, 6))
    for function in (extract_latents, scan):
        with pytest.raises(ValueError, match="at least one batch, got none"):
            function(model, [], head=head)


def test_split_batch_accepts_lists_and_small_integers():
    inputs, labels = split_batch([torch.randn(2, 6), torch.tensor([0, 1], dtype=torch.uint8)])
    assert inputs.shape == (2, 6)
    assert labels.dtype == torch.int64


def test_scan_reports_accuracy_timings_and_the_same_norms_as_one_batch():
    model = mlp()
    model.eval()
    loader = batches((40, 40, 20))
    seen = []
    report = scan(model, loader, on_batch=seen.append)
    assert seen == [40, 80, 100]
    inputs = torch.cat([x for x, _ in loader])
    labels = torch.cat([y for _, y in loader])
    assert report.accuracy == pytest.approx(float((model(inputs).argmax(1) == labels).float().mean()))
    assert torch.allclose(report.solution.norms, scan(model, [inputs]).solution.norms, rtol=1e-4)
    assert scan(model, [inputs]).accuracy is None
    assert set(report.timings) == {"latents", "solve", "total"}
    assert report.verdict.label == "inconclusive"  # four classes are too few


def test_small_network_has_the_promised_shapes():
    model = SmallPreActResNet(num_classes=3, in_channels=2, width=4)
    found = extract_latents(model, [torch.randn(2, 2, 8, 8)])
    assert found.latents.shape == (2, 16)
    assert found.logits.shape == (2, 3)
    assert float(found.latents.min()) >= 0
