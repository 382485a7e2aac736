import pytest
import torch
from backdoored import CLASSES, make_trial
from torch import nn
from torch.nn import functional as F

from tacfast import extract_latents, find_head, scan, solve_tac
from tacfast.detection import RULE_TRIM
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


def tiny_vit(models):
    return models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=7)


def tiny_convnext(models):
    convnext = models.convnext
    stages = [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 1)]
    return models.ConvNeXt(stages, num_classes=7)


def tiny_densenet(models):
    return models.DenseNet(8, (1, 1), 8, num_classes=7)


@pytest.mark.parametrize(
    ("library", "build", "name"),
    [
        ("torchvision.models", lambda models: models.resnet18(num_classes=7), "fc"),
        ("torchvision.models", lambda models: models.vgg11_bn(num_classes=7, init_weights=False), "classifier.6"),
        ("torchvision.models", tiny_convnext, "classifier.2"),
        ("torchvision.models", lambda models: models.efficientnet_b0(num_classes=7), "classifier.1"),
        ("torchvision.models", lambda models: models.mobilenet_v2(num_classes=7), "classifier.1"),
        ("torchvision.models", lambda models: models.mobilenet_v3_small(num_classes=7), "classifier.3"),
        ("torchvision.models", tiny_vit, "heads.head"),
        ("torchvision.models", tiny_densenet, "classifier"),
        (
            "timm",
            lambda timm: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=7),
            "head",
        ),
        ("torch.nn", lambda nn: nn.DataParallel(SmallPreActResNet(7, 3)), "module.linear"),
    ],
)
def test_finds_the_head_of_known_architectures(library, build, name):
    model = build(pytest.importorskip(library))
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
        (lambda logits: logits[:, :3], r"of shape \(3, 4\), got torch.float32 of shape \(3, 3\)"),
        (lambda logits: logits.round().int(), r"got torch.int32 of shape \(3, 4\)"),
        (lambda logits: {"out": logits}, "expected logits .* got dict with out; wrap"),
    ],
)
def test_says_what_differs(after, message):
    with pytest.raises(HeadError, match=message):
        find_head(Wrapped(after), torch.randn(3, 6))


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("after", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_half_precision_hides_no_softmax(dtype, after):
    with pytest.raises(HeadError, match="ends in a softmax"):
        find_head(Wrapped(after).to(dtype), torch.randn(3, 6, dtype=dtype))


class Autocast(nn.Module):
    """Runs a model in mixed precision, as some models do by themselves; its output may be cast back."""

    def __init__(self, model, cast=torch.Tensor.float):
        super().__init__()
        self.model = model
        self.cast = cast

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.cast(self.model(x))


@pytest.mark.parametrize("dtype", HALVES)
def test_half_and_mixed_precision_are_accepted(dtype):
    torch.manual_seed(0)
    inputs = torch.randn(200, 6)
    assert find_head(Wrapped(nn.Identity()).to(dtype), inputs.to(dtype)).name == "head"
    assert find_head(Wrapped(lambda logits: logits.float()).to(dtype), inputs.to(dtype)).name == "head"
    for model in (Autocast(mlp()), Autocast(mlp(), cast=nn.Identity())):
        assert find_head(model, inputs).name == "model.4"
        assert scan(model, [inputs]).solution.norms.isfinite().all()
    with pytest.raises(HeadError, match="something changes the logits"):
        find_head(Autocast(mlp(), cast=lambda logits: 1.1 * logits), inputs)


def test_a_second_name_of_a_tied_layer_is_a_name():
    model = Wrapped(nn.Identity())
    model.alias = model.head
    assert find_head(model, torch.randn(3, 6)).name == "head"
    assert find_head(model, torch.randn(3, 6), name="alias").name == "alias"


def test_a_parametrised_head_is_not_changed_by_looking():
    model = mlp()
    torch.nn.utils.parametrizations.spectral_norm(model[4])
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head = find_head(model, torch.randn(9, 6))
    report = scan(model, batches((60,)), head=head)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    inputs = batches((60,))[0][0]
    model.eval()
    with torch.no_grad():
        latents, weight = model[:4](inputs), model[4].weight
        solution = solve_tac(latents, weight, model[4].bias, trim=RULE_TRIM)
    assert torch.equal(head.weight, weight)
    assert torch.allclose(report.solution.norms, solution.norms, rtol=1e-5)


@pytest.mark.parametrize("factor", [2, 1 + 1e-5])
def test_a_modified_linear_layer_is_noticed(factor):
    class Modified(nn.Linear):
        def forward(self, x):
            return factor * super().forward(x)

    with pytest.raises(HeadError, match="not weight @ latents"):
        find_head(nn.Sequential(Modified(6, 4)), torch.randn(3, 6))


def test_latents_must_be_one_row_per_input():
    with pytest.raises(HeadError, match=r"one row per input, got \(3, 2, 6\)"):
        find_head(nn.Sequential(nn.Linear(6, 4)), torch.randn(3, 2, 6))


@pytest.mark.parametrize(
    ("model", "batch", "error", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), torch.randn(2, 1, 3, 3), HeadError, "Sequential has none"),
        ("model", torch.randn(2, 6), TypeError, "model: expected a torch.nn.Module, got str"),
        (nn.Linear(6, 4), [1.0], TypeError, "batch: expected a torch.Tensor"),
        (nn.Linear(6, 4), torch.randn(0, 6), ValueError, "at least one input"),
        (nn.Linear(6, 4), torch.tensor([[0.0], [torch.nan]]).repeat(1, 6), ValueError, "batch: .* for input 1"),
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
    scan(model, batches((60,)))
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
        ([{"x": 1}], TypeError, r"got \(int\)"),
        ([(torch.randn(2, 6), [0, 1])], TypeError, r"got \(Tensor, list\)"),
        ([(torch.randn(2, 6), torch.zeros(2).long(), 0)], TypeError, "inputs, labels"),
        ([torch.randn(0, 6)], ValueError, "at least one input"),
        ([torch.full((2, 6), torch.nan)], ValueError, "loader, batch 0: .* a NaN or an infinity for input 0"),
        ([torch.zeros(2, 6), torch.full((1, 6), torch.inf)], ValueError, "loader, batch 1: .* for input 0"),
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
    assert set(report.timings) == {"latents", "reading", "folding", "solve", "statistics", "stability", "total"}
    assert report.verdict.label == "inconclusive"  # four classes are too few


def test_a_scan_without_samples_of_every_class_is_inconclusive():
    trial = make_trial()
    answers = extract_latents(trial.model, trial.clean.loader()).logits.argmax(1)
    few = torch.cat([trial.splits.clean[answers == 0], trial.splits.clean[answers == 1][:3]])
    report = scan(trial.model, trial.data.subset(few).loader(16))
    assert report.solution.n_samples >= 10 * CLASSES
    assert report.verdict.label == "inconclusive"
    assert any("class 1 (3), class 2 (0), class 3 (0)" in reason for reason in report.verdict.reasons)
    assert scan(trial.model, trial.clean.loader()).verdict.label == "suspicious"


def test_small_network_has_the_promised_shapes():
    model = SmallPreActResNet(num_classes=3, in_channels=2, width=4)
    found = extract_latents(model, [torch.randn(2, 2, 8, 8)])
    assert found.latents.shape == (2, 16)
    assert found.logits.shape == (2, 3)
    assert float(found.latents.min()) >= 0


# ---- batches that are dictionaries ---------------------------------------------------------------------------


@pytest.mark.parametrize(("inputs", "labels"), [("pixel_values", "labels"), ("img", "target"), ("x", None)])
def test_batches_may_be_dictionaries(inputs, labels):
    images, wanted = torch.randn(4, 6), torch.arange(4)
    batch = {inputs: images, "file": ["a", "b", "c", "d"], **({} if labels is None else {labels: wanted})}
    found = split_batch(batch)
    assert found[0] is images
    assert (found[1] is None) == (labels is None)
    assert labels is None or torch.equal(found[1], wanted)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"data": torch.zeros(2, 3)}, "inputs as one of pixel_values, .* got a dictionary with data"),
        ({"image": torch.zeros(2, 3), "img": torch.zeros(2, 3)}, "got a dictionary with image, img"),
        ({"image": [1, 2]}, r"got \(list\)"),
        ({}, "got a dictionary with nothing"),
        ((torch.zeros(3, 4, 4), 3), "is it a data set"),
    ],
)
def test_dictionaries_without_inputs_and_data_sets_are_told(batch, message):
    with pytest.raises(TypeError, match=message):
        split_batch(batch)
