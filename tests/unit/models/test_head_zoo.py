"""Heads of other people's architectures, wrapped and compiled ones, and heads that are convolutions."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tacfast import extract_latents, find_head, repair, scan, solve_tac
from tacfast.detection import RULE_TRIM
from tacfast.models import HeadError, latent_batches
from tacfast.models.head import Head, head_named

CLASSES = 7


def check(model, images, name, dim):
    """The head has that name, and W φ(x) + b is what the model answers."""
    head = find_head(model, images)
    assert (head.name, tuple(head.weight.shape)) == (name, (CLASSES, dim))
    found = extract_latents(model, [images])
    assert found.latents.shape == (len(images), dim)
    with torch.no_grad():
        answers = model.eval()(images)
    assert answers.std() > 0
    with torch.no_grad():
        again = head.apply(found.latents)
    affine = found.latents @ head.weight.T + (0 if head.bias is None else head.bias)
    for logits in (found.logits, affine, again):
        assert torch.allclose(logits, answers, atol=1e-4 * float(answers.abs().max()))


# Models of torchvision, one per family but those of test_models.py: name, size of images, arguments, head and d.
VISION = [
    ("googlenet", 64, {"init_weights": False}, "fc", 1024),
    ("regnet_y_400mf", 32, {}, "fc", 440),
    ("shufflenet_v2_x0_5", 32, {}, "fc", 1024),
]
SLOW_VISION = [
    ("alexnet", 64, {}, "classifier.6", 4096),
    ("efficientnet_v2_s", 64, {}, "classifier.1", 1280),
    ("inception_v3", 75, {"init_weights": False}, "fc", 2048),
    ("maxvit_t", 224, {}, "classifier.5", 512),
    ("mnasnet0_5", 32, {}, "classifier.1", 1280),
    ("resnext50_32x4d", 32, {}, "fc", 2048),
    ("swin_t", 32, {}, "head", 768),
    ("swin_v2_t", 64, {}, "head", 768),
    ("wide_resnet50_2", 32, {}, "fc", 2048),
]

# The same of timm. The heads of dla, dpn and resnetv2 are convolutions.
TIMM = [
    ("dla46x_c", 32, {}, "fc", 256),
    ("efficientvit_b0", 32, {}, "head.classifier.4", 1280),
    ("ghostnet_050", 32, {}, "classifier", 1280),
    ("mobilenetv4_conv_small_035", 32, {}, "classifier", 1280),
    ("test_resnet", 32, {}, "fc", 96),
]
SLOW_TIMM = [
    ("convnext_atto", 32, {}, "head.fc", 320),
    ("densenet121", 32, {}, "classifier", 1024),
    ("dpn48b", 32, {}, "classifier", 832),
    ("inception_v4", 96, {}, "last_linear", 1536),
    ("mobilenetv3_small_050", 32, {}, "classifier", 1024),
    ("resnet10t", 32, {}, "fc", 512),
    ("resnetv2_50", 32, {}, "head.fc", 2048),
    ("swin_tiny_patch4_window7_224", 224, {}, "head.fc", 768),
    ("tf_efficientnet_lite0", 32, {}, "classifier", 1280),
    ("vit_tiny_patch16_224", 224, {}, "head", 192),
    ("xception41", 64, {}, "head.fc", 2048),
]


def slow(cases):
    return [pytest.param(*case, marks=pytest.mark.slow, id=case[0]) for case in cases]


def quick(cases):
    return [pytest.param(*case, id=case[0]) for case in cases]


@pytest.mark.parametrize(("name", "size", "settings", "head", "dim"), quick(VISION) + slow(SLOW_VISION))
def test_torchvision(name, size, settings, head, dim):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    check(models.get_model(name, num_classes=CLASSES, **settings), torch.randn(2, 3, size, size), head, dim)


@pytest.mark.parametrize(("name", "size", "settings", "head", "dim"), quick(TIMM) + slow(SLOW_TIMM))
def test_timm(name, size, settings, head, dim):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    check(timm.create_model(name, num_classes=CLASSES, **settings), torch.randn(2, 3, size, size), head, dim)


def test_a_small_swin():
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=CLASSES)
    check(model, torch.randn(2, 3, 32, 32), "head", 16)


def test_a_relu_after_the_last_convolution_is_no_head():
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = models.squeezenet1_1(num_classes=CLASSES)
    with pytest.raises(HeadError, match=r"'classifier.1': expected logits == head\(latents\), .* something changes"):
        find_head(model, torch.randn(2, 3, 64, 64))


def test_two_heads_are_no_head():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1, num_classes=CLASSES)
    with pytest.raises(HeadError, match="or what head gives is mixed in: wrap the model in a module that returns"):
        find_head(model, torch.randn(2, 3, 32, 32))


def body(channels=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, channels, 3), nn.ReLU())


def pooled_before(bias=True, classes=CLASSES):
    return nn.Sequential(body(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, classes, 1, bias=bias), nn.Flatten())


def pooled_after(bias=True, classes=CLASSES):
    """As in Network in Network."""
    return nn.Sequential(body(), nn.Conv2d(6, classes, 1, bias=bias), nn.AdaptiveAvgPool2d(1), nn.Flatten())


CONVOLUTIONS = [pooled_before, pooled_after]


def images(n=4, size=10, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("build", CONVOLUTIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_heads_that_are_convolutions(build, bias):
    model = build(bias).eval()
    check(model, images(), "2" if build is pooled_before else "1", 6)
    found = extract_latents(model, [images()])
    with torch.no_grad():
        assert torch.allclose(found.latents, model[0](images()).mean((2, 3)), atol=1e-6)
    assert (found.head.bias is None) == (not bias)
    assert found.head.num_classes == CLASSES


@pytest.mark.parametrize("build", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_convolutions_of_other_precisions(build, dtype):
    assert find_head(build().to(dtype), images(64).to(dtype)).weight.dtype == dtype


def test_latents_of_a_convolution_have_gradients():
    head = Head("head", nn.Conv2d(6, CLASSES, 1))
    latents = torch.randn(5, 6, requires_grad=True)
    logits = head.apply(latents)
    assert torch.allclose(logits, latents @ head.weight.T + head.bias, atol=1e-6)
    logits.sum().backward()
    assert torch.allclose(latents.grad, head.weight.sum(0).expand(5, 6), atol=1e-6)
    assert torch.allclose(head.module.weight.grad.flatten(1), latents.detach().sum(0).expand(CLASSES, 6), atol=1e-5)


class Pool(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.features, self.head, self.pool = body(), nn.Conv2d(6, CLASSES, 1), pool

    def forward(self, x):
        return self.pool(self.head(self.features(x)))


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (lambda maps: maps.amax((2, 3)), "something changes the logits"),
        (lambda maps: maps.sum((2, 3)), "something changes the logits"),
        (lambda maps: F.relu(maps, inplace=True).mean((2, 3)), "something changes the logits"),
        (lambda maps: maps.mean((2, 3)).softmax(1), "ends in a softmax"),
        (lambda maps: maps.mean((2, 3), keepdim=True), r"got torch.float32 of shape \(4, 7, 1, 1\)"),
        (lambda maps: maps, r"got torch.float32 of shape \(4, 7, 6, 6\)"),
    ],
)
def test_what_is_not_linear_after_a_convolution_is_refused(pool, message):
    with pytest.raises(HeadError, match=message):
        find_head(Pool(pool), images())


@pytest.mark.parametrize(
    "head",
    [
        nn.Conv2d(6, CLASSES, 3),
        nn.Conv2d(6, CLASSES, 1, stride=2),
        nn.Conv2d(6, CLASSES, 1, padding=1),
        nn.Conv2d(6, 6, 1, groups=2),
    ],
)
def test_only_plain_pointwise_convolutions_are_heads(head):
    model = nn.Sequential(body(), head, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(HeadError, match="expected a linear layer or a 1×1 convolution"):
        find_head(model, images())
    with pytest.raises(HeadError, match=r"\(none\), got '1': a Conv2d"):
        find_head(model, images(), name="1")
    assert head_named(model, "1") is None


def test_a_convolution_with_a_parametrised_weight_is_noticed():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight - self.weight.mean(), self.bias)

    with pytest.raises(HeadError, match="not weight @ latents"):
        find_head(nn.Sequential(Standardised(6, CLASSES, 1), nn.Flatten()), torch.randn(4, 6, 1, 1))


@pytest.mark.parametrize("build", CONVOLUTIONS)
def test_scan_and_repair_with_a_convolution(build):
    """The same network with a linear head, whose latents and logits are the same, gives the same answers."""
    torch.manual_seed(1)
    model, classes = build(classes=4).eval(), 4
    twin = nn.Sequential(body(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes)).eval()
    twin[0].load_state_dict(model[0].state_dict())
    head = find_head(model, images())
    with torch.no_grad():
        twin[3].weight.copy_(head.weight)
        twin[3].bias.copy_(head.bias)
    x = images(60)
    loader = [(x[i : i + 20], twin(x[i : i + 20]).argmax(1)) for i in (0, 20, 40)]
    report, expected = scan(model, loader), scan(twin, loader)
    assert report.head.name == head.name
    assert report.accuracy == expected.accuracy == 1.0
    assert torch.allclose(report.solution.norms, expected.solution.norms, rtol=1e-4)
    latents = extract_latents(model, loader).latents
    solution = solve_tac(latents, head.weight, head.bias, trim=RULE_TRIM)
    assert torch.allclose(solution.norms, report.solution.norms, rtol=1e-4)
    target = int(report.solution.norms.argmin())
    repaired, other = (
        repair(suspect, every_class(loader, classes), scanned, epochs=2, lr=0.01, targets=(target,))
        for suspect, scanned in ((model, report), (twin, expected))
    )
    assert [round(record.loss, 4) for record in repaired.history] == [round(record.loss, 4) for record in other.history]
    with torch.no_grad():
        assert torch.allclose(repaired.model(x), other.model(x), atol=1e-4)
        assert not torch.allclose(repaired.model(x), model(x), atol=1e-2)


def every_class(loader, classes):
    """The same samples with labels of all classes, which a repair expects."""
    return [(inputs, torch.arange(len(inputs)) % classes) for inputs, _ in loader]


class Parallel(nn.DataParallel):
    """DataParallel as on several GPUs: running it, rather than what it wraps, would run on parts of the batch."""

    def forward(self, x):
        return torch.cat([self.module(part) for part in x.chunk(2)])


@pytest.mark.parametrize("wrap", [nn.DataParallel, Parallel])
def test_inside_of_data_parallel(wrap):
    model = wrap(pooled_before())
    assert find_head(model, images()).name == "module.2"
    found = extract_latents(model, [images(), images(3, seed=2)])
    assert found.latents.shape == (7, 6)
    assert torch.equal(found.logits, extract_latents(model.module, [images(), images(3, seed=2)]).logits)


def test_a_repair_of_a_wrapped_model():
    x = images(40)
    model = pooled_before(classes=4).eval()
    loader = [(x[:20], model(x[:20]).argmax(1)), (x[20:], model(x[20:]).argmax(1))]
    report = scan(model, loader)
    target = int(report.solution.norms.argmin())
    loader = every_class(loader, 4)
    plain = repair(model, loader, report, epochs=2, lr=0.01, targets=(target,)).model
    # Scanned without the wrapper, repaired with it.
    wrapped = repair(Parallel(model), loader, report, epochs=2, lr=0.01, targets=(target,)).model
    assert isinstance(wrapped, Parallel)
    # Not to the bit: on a busy machine threads share out a convolution's sums in another way now and then.
    torch.testing.assert_close(wrapped.module(x), plain(x), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain(x), model(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["2", "module.2", "_orig_mod.2", "module._orig_mod.2"])
@pytest.mark.parametrize(("wrap", "prefix"), [(nn.Sequential.eval, ""), (nn.DataParallel, "module.")])
def test_a_name_may_have_the_prefix_of_a_wrapper_or_not(name, wrap, prefix):
    model = wrap(pooled_before())
    head = find_head(model, images(), name=name)
    assert head.name == f"{prefix}2"
    assert head.module is model.get_submodule(head.name)


def test_a_layer_that_is_really_called_module_keeps_its_name():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 6)
            self.module = nn.Sequential(OrderedDict(head=nn.Linear(6, CLASSES)))

        def forward(self, x):
            return self.module(self.head(x))

    inputs = torch.randn(4, 6)
    assert find_head(Outer(), inputs).name == "module.head"
    assert find_head(Outer(), inputs, name="module.head").name == "module.head"
    assert find_head(nn.DataParallel(Outer()), inputs, name="module.module.head").name == "module.module.head"


def test_known_names_in_an_error_are_few():
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(50)))
    with pytest.raises(HeadError, match=r"\(…, 44, 45, 46, 47, 48, 49\), got 'fc': no such layer"):
        find_head(model, torch.randn(2, 6), name="fc")


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("how", ["wrapped", "in place", "a part", "in DataParallel"])
def test_compiled_models(how, used):
    """What is compiled is not compiled anew, as it would be for the hooks."""
    torch.compiler.reset()  # what it knows of the same code in another test
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    model, prefix = pooled_before().eval(), ""
    expected = extract_latents(model, [images()])
    if how == "in place":
        model.compile(backend=backend)
    elif how == "a part":
        model = nn.Sequential(torch.compile(model, backend=backend))
        prefix = "0._orig_mod."
    else:
        model, prefix = torch.compile(model, backend=backend), "_orig_mod."
        if how == "in DataParallel":
            model, prefix = nn.DataParallel(model), "module._orig_mod."
    if used:
        model(images())
    before = len(graphs)
    assert before == int(used)
    found = extract_latents(model, [images(), images()])
    assert len(graphs) == before
    assert found.head.name == f"{prefix}2"
    assert torch.equal(found.latents[:4], expected.latents)
    if how != "a part":
        assert find_head(model, images(), name="2").module is found.head.module
    with torch.no_grad():
        assert torch.allclose(model(images()), expected.logits, atol=1e-6)
    assert len(graphs) > before  # compiled, or compiled again for no_grad


class Outputs(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.head, self.wrap = nn.Linear(6, CLASSES), wrap

    def forward(self, x):
        return self.wrap(self.head(x))


@pytest.mark.parametrize("wrap", [lambda y: {"logits": y}, lambda y: (y, y), lambda y: [y]])
def test_logits_are_found_in_other_outputs(wrap):
    assert find_head(Outputs(wrap), torch.randn(3, 6)).name == "head"


@pytest.mark.parametrize("wrap", [lambda y: {"out": y}, lambda y: (None, y), lambda y: [[y]], lambda y: None])
def test_outputs_without_logits_say_how_to_give_them(wrap):
    with pytest.raises(
        HeadError,
        match=r"got (dict with out|tuple|list|NoneType); wrap the model in a module that returns the logits of",
    ):
        find_head(Outputs(wrap), torch.randn(3, 6))


def test_logits_in_an_output_that_are_changed_ones_are_seen():
    with pytest.raises(HeadError, match="something changes the logits"):
        find_head(Outputs(lambda y: {"logits": y.tanh()}), torch.randn(3, 6))


def snapshot(model):
    """Everything about a model that a scan could leave changed."""
    modules = list(model.modules())
    return {
        "modes": [module.training for module in modules],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grad": [id(parameter.grad) for parameter in model.parameters()],
        "values": [tensor.clone().tolist() for tensor in (*model.parameters(), *model.buffers())],
        "gradients": [None if parameter.grad is None else parameter.grad.tolist() for parameter in model.parameters()],
        "enabled": torch.is_grad_enabled(),
    }


def raising_loader():
    yield images(), torch.zeros(4).long()
    yield images(), torch.zeros(4).long()
    raise OSError("the loader fails")


class Failing(nn.Module):
    """Fails on the second batch."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, x):
        self.count += 1
        if self.count > 2:
            raise ArithmeticError("the model fails")
        return x


@pytest.mark.parametrize("function", [extract_latents, scan])
@pytest.mark.parametrize("error", [OSError, ArithmeticError])
@pytest.mark.parametrize("build", CONVOLUTIONS)
def test_everything_is_restored_when_the_loader_or_the_model_fails(function, error, build):
    model = nn.Sequential(build(), Failing() if error is ArithmeticError else nn.Identity())
    model.train()
    model[0][0][1].eval()  # as when BatchNorm is frozen
    model[0](images()).sum().backward()
    next(model.parameters()).requires_grad_(False)
    before = snapshot(model)
    with pytest.raises(error, match="fails"):
        function(model, raising_loader() if error is OSError else [images()] * 3)
    assert snapshot(model) == before


def test_everything_is_restored_when_the_loop_is_left():
    model = pooled_before().train()
    head = find_head(model, images())
    before = snapshot(model)
    with latent_batches(model, [images()] * 3, head) as batches:
        next(batches)
    assert snapshot(model) == before


def test_the_loader_is_gone_through_once():
    """Starting again would start its workers twice, and shuffle it a second time."""

    class Loader:
        starts = 0

        def __iter__(self):
            self.starts += 1
            return iter([images(), images()])

    loader = Loader()
    assert extract_latents(pooled_before(), loader).latents.shape == (8, 6)
    assert loader.starts == 1
