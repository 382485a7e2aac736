import sys

import pytest
import torch
from torch.nn import functional as F

from tacfast import find_head
from tacfast.models import CheckpointError, build_model, load_weights


def images(size=32, channels=3):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_own_architectures_have_the_head_that_is_asked_for():
    for name, options in (("preactresnet18", {}), ("small_preact_resnet", {"in_channels": 3, "width": 4})):
        model = build_model(name, 7, arch_args=options)
        head = find_head(model, images())
        assert (head.name, head.num_classes) == ("linear", 7)


def test_preactresnet18_is_the_network_of_the_paper_under_backdoorbench_names():
    """Against the network written out with functions, from the names that BackdoorBench's checkpoints have."""
    model = build_model("preactresnet18", 10).train()
    model(images())  # running statistics other than 0 and 1
    model.eval()
    state = model.state_dict()
    assert sum(p.numel() for p in model.parameters()) == 11_171_146  # of the usual CIFAR variant

    def norm(x, name):
        moments, affine = (("running_mean", "running_var"), ("weight", "bias"))
        return F.relu(F.batch_norm(x, *(state.pop(f"{name}.{part}") for part in (*moments, *affine))))

    x = F.conv2d(images(), state.pop("conv1.weight"), padding=1)
    for stage in range(1, 5):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            active = norm(x, f"{name}.bn1")
            shortcut = f"{name}.shortcut.0.weight"
            x = F.conv2d(active, state.pop(shortcut), stride=stride) if shortcut in state else x
            y = F.conv2d(active, state.pop(f"{name}.conv1.weight"), stride=stride, padding=1)
            x = x + F.conv2d(norm(y, f"{name}.bn2"), state.pop(f"{name}.conv2.weight"), padding=1)
    expected = F.linear(x.mean((2, 3)), state.pop("linear.weight"), state.pop("linear.bias"))
    assert torch.allclose(model(images()), expected, atol=1e-5)
    assert all(name.endswith("num_batches_tracked") for name in state)


def test_torchvision_and_timm_are_told_apart():
    pytest.importorskip("torchvision")
    timm = pytest.importorskip("timm")
    assert type(build_model("resnet18", 5)).__module__.startswith("torchvision.")
    assert type(build_model("timm:resnet18", 5)).__module__.startswith("timm.")
    vit = build_model("timm:vit_tiny_patch16_224", 5, arch_args={"img_size": 32, "patch_size": 4, "depth": 1})
    assert vit(images()).shape == (2, 5)
    bare = "test_vit"
    assert bare in timm.list_models()
    assert type(build_model(bare, 5)).__module__.startswith("timm.")


@pytest.mark.parametrize(
    ("name", "size", "auxiliary"), [("googlenet", 224, "aux1"), ("inception_v3", 299, "AuxLogits")]
)
def test_auxiliary_heads_are_left_out(name, size, auxiliary):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        trained = models.get_model(name, weights=None, num_classes=3, aux_logits=True, init_weights=False)
        model, with_heads = build_model(name, 3), build_model(name, 3, arch_args={"aux_logits": True})
        assert any(key.startswith(auxiliary) for key in trained.state_dict())
        load_weights(model, trained.state_dict())
        load_weights(with_heads, trained.state_dict())
        for mode in (True, False):
            assert isinstance(model.train(mode)(torch.empty(2, 3, size, size)), torch.Tensor)
        with pytest.raises(CheckpointError, match="unexpected"):
            load_weights(model, {**trained.state_dict(), "other.weight": torch.empty(1)})


def refusal(*args, **options):
    with pytest.raises(ValueError, match=r"arch|num_classes") as caught:
        build_model(*args, **options)
    return str(caught.value)


def test_unknown_names_come_with_those_like_them():
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    assert refusal("resnet81", 3).startswith("arch: expected the name of an architecture, got 'resnet81'")
    assert "resnet18" in refusal("resnet81", 3)
    assert "preactresnet18" in refusal("preact_resnet18", 3)
    assert "timm:vit_tiny_patch16_224" in refusal("timm:vit_tiny_patch16_22", 3)
    assert "try preactresnet18" in refusal("?", 3)


def test_nothing_is_downloaded_or_read(monkeypatch, tmp_path):
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("connected to something"))
    for name in ("hf-hub:timm/resnet18", "timm:hf-hub:timm/resnet18", "timm/resnet18", f"timm:local-dir:{tmp_path}"):
        assert "expected the name of an architecture" in refusal(name, 3)
    forbidden = {"pretrained": True, "weights": "DEFAULT", "checkpoint_path": "x.pt", "pretrained_cfg": {"file": "x"}}
    for name in ("resnet18", "timm:resnet18"):
        for option, value in forbidden.items():
            assert f"got '{option}'" in refusal(name, 3, arch_args={option: value})


def test_arguments_that_do_not_fit_are_named():
    pytest.importorskip("torchvision")
    message = refusal("resnet18", 3, arch_args={"colour": "red\x1b"})
    assert "resnet18 cannot be built with {'colour'" in message
    assert message.isprintable()
    assert "at least 2, got 1" in refusal("resnet18", 1)
    assert "at least 2, got True" in refusal("resnet18", True)
    assert "got 3.0" in refusal("resnet18", 3.0)
    with pytest.raises(TypeError, match="arch: expected the name"):
        build_model(torch.nn.Linear, 3)


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"tacfast\[vision\]"):
        build_model("timm:resnet18", 3)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"tacfast\[vision\]"):
        build_model("resnet18", 3)
    assert build_model("small_preact_resnet", 3)
