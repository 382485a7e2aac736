"""Folders of transformers and of timm: read without running or fetching anything, and written back."""

import json
import pickle
import random
import shutil
import socket
import sys

import pytest
import timm
import torch
from torch import nn

from tacfast import find_head, repair, scan
from tacfast.models import CheckpointError, build_model, load_checkpoint, restore_model
from tacfast.models.checkpoint import find_checkpoint
from tacfast.models.head import HeadError, logits_in
from tacfast.models.huggingface import write_folder

transformers = pytest.importorskip("transformers")
from transformers import AutoConfig, AutoModelForImageClassification  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE, NAMES = 32, ("cat", "dog", "ship", "frog", "deer")
ATTENTION = {"num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32, "hidden_size": 16}
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
KINDS = {
    "vit": ATTENTION | {"image_size": SIDE, "patch_size": 8},
    "deit": ATTENTION | {"image_size": SIDE, "patch_size": 8},
    "beit": ATTENTION | {"image_size": SIDE, "patch_size": 8},
    "dinov2": ATTENTION | {"image_size": SIDE, "patch_size": 8},
    "swin": {
        "image_size": SIDE,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "convnext": STAGES,
    "resnet": STAGES | {"embedding_size": 8},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": SIDE},
}
CLASSES = {"deit": "DeiTForImageClassification"}
PREPROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.25, 0.3],
    "size": {"height": SIDE, "width": SIDE},
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever wants to fetch something fails."""

    def refuse(*_, **__):
        raise AssertionError("somebody asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def make_model(kind):
    names = dict(enumerate(NAMES))
    config = AutoConfig.for_model(kind, **KINDS[kind], id2label=names, label2id={v: k for k, v in names.items()})
    config.architectures = [CLASSES[kind]] if kind in CLASSES else None
    torch.manual_seed(0)
    return AutoModelForImageClassification.from_config(config).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """As ``save_pretrained`` writes them."""
    root = tmp_path_factory.mktemp("folders")
    for kind in KINDS:
        make_model(kind).save_pretrained(root / kind)
        (root / kind / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return root


@pytest.fixture
def vit(folders, tmp_path):
    """One that a test may change."""
    return shutil.copytree(folders / "vit", tmp_path / "vit")


def change(folder, name="config.json", **fields):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


IMAGES = torch.randn(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_says_everything_and_computes_what_transformers_does(folders, kind):
    checkpoint = load_checkpoint(folders / kind)
    assert (checkpoint.arch, checkpoint.num_classes) == (f"transformers:{kind}", len(NAMES))
    assert checkpoint.class_names == NAMES
    assert checkpoint.mean == (0.5, 0.4, 0.3)
    assert checkpoint.std == (0.2, 0.25, 0.3)
    assert checkpoint.image_size == (SIDE, SIDE)
    model = restore_model(checkpoint)
    assert model.training
    expected = AutoModelForImageClassification.from_pretrained(folders / kind).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(IMAGES).logits, expected(IMAGES).logits, equal_nan=False)
    assert find_head(model, IMAGES).num_classes == len(NAMES)


def test_weights_in_pickles_and_in_parts(folders, vit):
    expected = load_checkpoint(vit).weights
    (vit / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors or pytorch_model\.bin in it, got neither"):
        load_checkpoint(vit)
    torch.save(expected, vit / "pytorch_model.bin")
    found = load_checkpoint(vit).weights
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    (vit / "pytorch_model.bin").unlink()
    make_model("vit").save_pretrained(vit, max_shard_size="10KB")
    assert len(list(vit.glob("model-*.safetensors"))) > 1
    parts = load_checkpoint(vit)
    assert parts.weights.keys() == expected.keys()
    assert torch.equal(restore_model(parts).eval()(IMAGES).logits, make_model("vit")(IMAGES).logits)
    change(vit, "model.safetensors.index.json", weight_map={"x": "../../elsewhere.safetensors"})
    with pytest.raises(CheckpointError, match="the file of each tensor, beside it"):
        load_checkpoint(vit)


class Runs:
    def __reduce__(self):
        return print, ("this ran",)


def test_a_hostile_pickle_is_refused_and_not_run(vit, capsys):
    (vit / "model.safetensors").unlink()
    torch.save({"classifier.weight": torch.zeros(5, 16), "x": Runs()}, vit / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="refused"):
        load_checkpoint(vit)
    (vit / "pytorch_model.bin").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(CheckpointError, match="refused"):
        load_checkpoint(vit)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["ViTModel"]}, "expected an image classifier, got ViTModel"),
        ({"architectures": None}, "expected model_type and architectures"),
        ({"model_type": 3}, "expected model_type and architectures"),
        ({"architectures": ["DeiTForImageClassificationWithTeacher"]}, "averages two heads, cls_classifier and"),
        ({"backbone": "microsoft/resnet-50"}, r"one that builds on another \(backbone\)"),
        ({"id2label": {"0": "a", "2": "b"}}, "class_names: expected a list of printable names"),
    ],
)
def test_what_is_no_classifier_of_its_own_is_refused(vit, fields, message):
    change(vit, **fields)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(vit)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "\udce4"])
def test_damaged_json_is_refused_in_one_line(vit, name, content):
    (vit / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match="expected") as caught:
        load_checkpoint(vit)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_and_kernels_that_a_configuration_asks_for_are_not_used(vit):
    expected = restore_model(load_checkpoint(vit)).eval()(IMAGES).logits
    (vit / "modeling.py").write_text("raise SystemExit('this ran')")
    change(
        vit,
        auto_map={"AutoModelForImageClassification": "modeling.Model"},
        attn_implementation="somebody/kernel",
        _attn_implementation="somebody/kernel",
        _name_or_path="somebody/model",
        quantization_config={"quant_method": "gptq"},
        dtype="float16",
        never_heard_of=[1],
    )
    found = restore_model(load_checkpoint(vit))
    assert found.dtype == torch.float32
    assert torch.equal(found.eval()(IMAGES).logits, expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 90_000, "num_attention_heads": 2}, "far more than the"),
        ({"num_hidden_layers": 90_000}, "far more than the"),
        ({"num_hidden_layers": "many"}, "vit cannot be built"),
        ({"hidden_size": 0}, "vit cannot be built"),
        ({"num_hidden_layers": 1}, "16 unexpected"),
        ({"num_hidden_layers": 3}, "16 missing"),
        ({"intermediate_size": 33}, "of another shape"),
        ({"model_type": "gone"}, "expected a model_type that transformers knows, got 'gone'"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(vit, fields, message):
    change(vit, **fields)
    with pytest.raises(ValueError, match=message) as caught:
        restore_model(load_checkpoint(vit))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"size": 48}, ((0.5, 0.4, 0.3), (48, 48))),
        ({"size": {"shortest_edge": 40}}, ((0.5, 0.4, 0.3), (40, 40))),
        ({"do_center_crop": True, "crop_size": {"height": 24, "width": 24}}, ((0.5, 0.4, 0.3), (24, 24))),
        ({"do_normalize": False}, ((0.0, 0.0, 0.0), (SIDE, SIDE))),
        ({"rescale_factor": 1 / 127.5}, (None, None)),  # for pixels in another range: better asked for than wrong
        ({"do_rescale": False}, (None, None)),
    ],
)
def test_what_a_preprocessor_says(vit, fields, expected):
    change(vit, "preprocessor_config.json", **fields)
    found = load_checkpoint(vit)
    assert (found.mean, found.image_size) == expected


def test_without_a_preprocessor_nothing_is_guessed_and_made_up_names_are_no_names(vit):
    (vit / "preprocessor_config.json").unlink()
    change(vit, id2label={str(k): f"LABEL_{k}" for k in range(5)})
    found = load_checkpoint(vit)
    assert (found.mean, found.std, found.image_size, found.class_names) == (None, None, None, None)
    assert found.num_classes == 5


def test_timms_own_layout(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=5).eval()
    model.pretrained_cfg |= {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "input_size": (3, 64, 64)}
    timm.models.save_for_hf(model, tmp_path / "timm", model_args={}, safe_serialization=True)
    checkpoint = load_checkpoint(tmp_path / "timm")
    assert (checkpoint.arch, checkpoint.num_classes, checkpoint.image_size) == ("timm:resnet10t", 5, (64, 64))
    assert (checkpoint.mean, checkpoint.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    restored = restore_model(checkpoint).eval()
    assert torch.equal(restored(IMAGES), model(IMAGES))
    write_folder(restored, tmp_path / "timm", tmp_path / "again", {"metrics": {"acc": 0.5}})
    again = load_checkpoint(tmp_path / "again")
    assert torch.equal(restore_model(again).eval()(IMAGES), model(IMAGES))
    assert again.metrics == {"acc": 0.5}


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_what_is_written_transformers_reads(folders, tmp_path, kind):
    model = restore_model(load_checkpoint(folders / kind)).eval()
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    (tmp_path / "new" / ".out.new" / "half").mkdir(parents=True)  # as a process leaves it that was killed
    write_folder(model, folders / kind, tmp_path / "new" / "out", {"provenance": {"tool": "x"}})
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out"]
    assert not (tmp_path / "new" / "out" / "half").exists()
    expected = model(IMAGES).logits
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "new" / "out").eval()
    assert torch.equal(theirs(IMAGES).logits, expected)
    ours = load_checkpoint(tmp_path / "new" / "out")
    assert torch.equal(restore_model(ours).eval()(IMAGES).logits, expected)
    assert (ours.mean, ours.class_names, ours.provenance) == ((0.5, 0.4, 0.3), NAMES, {"tool": "x"})


def test_a_write_that_fails_leaves_nothing(folders, tmp_path, monkeypatch):
    model = restore_model(load_checkpoint(folders / "vit"))
    monkeypatch.setattr(type(model), "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_folder(model, folders / "vit", tmp_path / "out", {})
    assert list(tmp_path.iterdir()) == []


# ---- which file a folder means -----------------------------------------------------------------------------------


def test_a_folder_with_one_checkpoint_means_that(tmp_path):
    weights = nn.Linear(3, 2).state_dict()
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"one checkpoint .* got none"):
        load_checkpoint(tmp_path)
    torch.save(weights, tmp_path / "last.ckpt")
    assert find_checkpoint(tmp_path) == tmp_path / "last.ckpt"
    assert torch.equal(load_checkpoint(tmp_path).weights["weight"], weights["weight"])
    torch.save(weights, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match=r"one checkpoint .* got best\.pt, last\.ckpt"):
        load_checkpoint(tmp_path)
    torch.save({"model_name": "resnet18", "num_classes": 2, "model": weights}, tmp_path / "attack_result.pt")
    assert load_checkpoint(tmp_path).arch == "resnet18"


# ---- outputs that are not just logits ----------------------------------------------------------------------------

LOGITS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "output",
    [LOGITS, {"logits": LOGITS, "loss": 1}, (LOGITS, None), [LOGITS], transformers.utils.ModelOutput(logits=LOGITS)],
    ids=["tensor", "dict", "tuple", "list", "ModelOutput"],
)
def test_logits_are_found(output):
    assert logits_in(output) is LOGITS


@pytest.mark.parametrize("output", [None, {"out": LOGITS}, (), ("logits", LOGITS), 3.0, {"logits": [1.0]}], ids=repr)
def test_where_there_are_no_logits_it_is_said(output):
    with pytest.raises(HeadError, match=f"got {type(output).__name__}"):
        logits_in(output)


def test_scan_and_repair_take_and_give_a_model_of_transformers(folders):
    torch.manual_seed(0)
    model = make_model("resnet")
    images, labels = torch.randn(80, 3, SIDE, SIDE), torch.arange(80) % 5
    batches = list(zip(images.split(16), labels.split(16), strict=True))
    report = scan(model, batches, blocks=0)
    assert report.verdict.rule == "full"
    assert report.head.name == "classifier.1"
    for mode in ("universal", "latent", "ft"):
        more = {} if mode == "ft" else {"targets": (1,), "max_drop": 1.0}
        result = repair(model, batches, report, mode=mode, epochs=1, held_out=batches, **more)
        assert isinstance(result.model, type(model))
        assert result.model(images[:2]).logits.shape == (2, 5)


def test_an_architecture_of_transformers_by_name():
    model = build_model("transformers:vit", 7, arch_args=KINDS["vit"])
    assert model(IMAGES).logits.shape == (6, 7)


# ---- damaged on purpose ------------------------------------------------------------------------------------------

ODD = (
    None,
    True,
    -1,
    0,
    1,
    3,
    90_000,
    10**30,
    0.5,
    1e308,
    "",
    "x",
    "\n\x1b[2J",
    [],
    [1],
    [[]],
    {},
    {"a": 1},
    "a" * 5000,
)
KNOWN = ("image_size", "num_channels", "id2label", "hidden_act", "num_labels", "size", "image_mean", "architecture")


def places(value, path=()):
    """Where something could be changed in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def changed_somewhere(value, draw):
    """One to three random places in a JSON value taken out, exchanged or given something odd, or a field added."""
    root = [json.loads(json.dumps(value))]
    for _ in range(draw.choice([1, 1, 2, 3])):
        where = draw.choice(places(root[0]))
        parent, key = root, 0
        for step in where:
            parent, key = parent[key], step
        kind = draw.random()
        if kind < 0.2 and where:
            del parent[key]
        elif kind < 0.35 and isinstance(parent[key], dict):
            parent[key][draw.choice([*KNOWN, *map(str, where)])] = draw.choice(ODD)
        else:
            parent[key] = draw.choice(ODD)
    return root[0]


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_mutated_folders_are_read_or_refused(folders, tmp_path, count):
    draw, read = random.Random(count), 0
    kinds = ["vit", "swin", "resnet", "convnext", "mobilenet_v2"]
    for kind in kinds:
        shutil.copytree(folders / kind, tmp_path / kind)
    for _ in range(count):
        folder = tmp_path / draw.choice(kinds)
        file = folder / draw.choice(["config.json", "config.json", "preprocessor_config.json"])
        original = file.read_text()
        file.write_text(json.dumps(changed_somewhere(json.loads(original), draw)))
        try:
            restore_model(load_checkpoint(folder))
            read += 1
        except ValueError as error:  # CheckpointError is one
            assert str(error).isprintable(), str(error)  # noqa: PT017
        finally:
            file.write_text(original)
    assert 0 < read < 0.8 * count


# ---- what a reviewer found ---------------------------------------------------------------------------------------


def test_a_model_that_builds_any_other_of_timm_is_not_built(vit, tmp_path):
    change(
        vit,
        model_type="timm_wrapper",
        architectures=["TimmWrapperForImageClassification"],
        model_args={"checkpoint_path": str(tmp_path / "training_args.bin")},
    )
    with pytest.raises(ValueError, match="expected a model_type that transformers knows, got 'timm_wrapper'"):
        restore_model(load_checkpoint(vit))
    with pytest.raises(ValueError, match="got 'timm_wrapper'"):
        build_model("transformers:timm_wrapper", 5, arch_args={"architecture": "hf-hub:somebody/model"})


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "fields",
    [{"id2label": nested(900)}, {"depths": nested(900)}, {"hidden_size": 10**400}, {"id2label": {"0": 10**5000}}],
    ids=["names", "arguments", "large", "too many digits"],
)
def test_what_is_nested_too_deep_or_too_large_is_refused_in_a_line(vit, fields):
    path = vit / "config.json"
    sys.set_int_max_str_digits(0)
    try:
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    finally:
        sys.set_int_max_str_digits(4300)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(vit)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("number", [10**400, [1], "x"])
def test_odd_numbers_in_a_preprocessor_are_refused_in_a_line(vit, number):
    change(vit, "preprocessor_config.json", image_mean=[number] * 3)
    with pytest.raises(CheckpointError, match="mean: expected a list of numbers"):
        load_checkpoint(vit)


def test_long_names_make_short_messages(vit):
    change(vit, model_type="a" * 10**6)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(vit)
    assert len(str(caught.value)) < 600


def test_only_what_is_known_is_copied(vit, tmp_path):
    (tmp_path / "secret").write_text("a key")
    (vit / "NOTES.md").symlink_to(tmp_path / "secret")
    write_folder(restore_model(load_checkpoint(vit)), vit, tmp_path / "out", {})
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "preprocessor_config.json", "model.safetensors", "tacfast.json"}


def test_a_folder_has_no_choice_of_weights(vit):
    for options in ({"key": "ema"}, {"strip_prefix": "net."}):
        with pytest.raises(CheckpointError, match="expected no key or prefix"):
            load_checkpoint(vit, **options)


def test_a_name_that_no_file_can_have_is_told():
    with pytest.raises(CheckpointError, match="not read: File name too long"):
        load_checkpoint("a" * 300)
