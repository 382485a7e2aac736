import pytest
import torch
from checkpoints import assert_same, small_net
from torch import nn

from tacfast.models import CheckpointError, load_weights


def test_prefixes_of_wrappers_do_not_count():
    net, state = small_net(), small_net().state_dict()
    wrapped = nn.DataParallel(small_net())
    for prefix in ("", "module.", "_orig_mod.", "model.", "module._orig_mod.model.", "_orig_mod.module."):
        target = small_net(classes=3)
        nn.init.zeros_(target[3].weight)
        load_weights(target, {prefix + name: tensor for name, tensor in state.items()})
        assert_same(target.state_dict(), net.state_dict())
        nn.init.zeros_(wrapped.module[3].weight)
        load_weights(wrapped, {prefix + name: tensor for name, tensor in state.items()})
        assert_same(wrapped.module.state_dict(), net.state_dict())
    holder = nn.Module()
    holder.model = small_net()  # here the prefix is part of the name
    load_weights(holder, {"model." + name: tensor for name, tensor in state.items()})
    with pytest.raises(CheckpointError, match="1 unexpected"):  # at once: it would take days to take off each
        load_weights(net, {"module." * 10**6: torch.ones(1)})
    mixed = {("module." if name.startswith("0") else "") + name: tensor for name, tensor in state.items()}
    with pytest.raises(CheckpointError, match=r"2 missing .*2 unexpected \(module.0.weight"):
        load_weights(net, mixed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_are_cast_to_the_model(dtype):
    net = small_net()
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in net.state_dict().items()
    }
    load_weights(net, state)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    assert torch.equal(net[3].weight, state["3.weight"].float())


def test_batch_counts_may_be_missing_and_are_kept():
    net = small_net()
    net(torch.randn(2, 1, 4, 4))
    state = {name: tensor + 1 for name, tensor in net.state_dict().items() if "num_batches" not in name}
    load_weights(net, state)
    assert int(net[1].num_batches_tracked) == 1
    assert torch.equal(net[0].weight, state["0.weight"])


def test_what_does_not_fit_is_listed_and_nothing_is_loaded():
    net = small_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    changed = {name: tensor + 1 for name, tensor in before.items()}

    def message(state):
        with pytest.raises(CheckpointError) as caught:
            load_weights(net, state)
        assert_same(net.state_dict(), before)
        return str(caught.value)

    assert "2 missing (3.weight, 3.bias)" in message({n: t for n, t in changed.items() if n[0] != "3"})
    assert "1 unexpected (a?b)" in message({**changed, "a\nb": torch.ones(1)}).replace("\N{REPLACEMENT CHARACTER}", "?")
    more = message({**changed, **{f"extra.{i}": torch.ones(1) for i in range(20)}})
    assert "20 unexpected (extra.0" in more
    assert "extra.7 and 12 more)" in more
    wrong = message({**changed, "0.weight": torch.ones(2, 3, 3, 3)})
    assert "1 of another shape (0.weight (2, 3, 3, 3) instead of (2, 1, 3, 3))" in wrong
    assert "classes" not in wrong
    head = message({**changed, "3.weight": torch.ones(5, 8), "3.bias": torch.ones(5)})
    assert "made for 5 classes and the model for 3" in head
    assert "torch.int8 instead of torch.float32" in message({**changed, "3.bias": torch.ones(3, dtype=torch.int8)})
    assert "8 missing" in message({})


def test_every_layer_with_a_version_of_its_own_is_loaded():
    """MNASNet refuses a state dict without its version, which files of other kinds do not have."""
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        for name in ("mnasnet0_5", "swin_v2_t", "vit_b_16"):
            net = models.get_model(name, weights=None, num_classes=3)
            load_weights(net, dict(net.state_dict()))
