import argparse
import datetime
import os
import pathlib
import pickle
import random
import shutil
import struct
import sys
import threading
import types
import warnings
import zipfile
from _codecs import encode
from collections import Counter, OrderedDict, defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from checkpoints import (
    LEGACY,
    assert_same,
    legacy_with_pickle,
    read_mutations,
    records,
    saved,
    seeds,
    small_net,
    with_header,
    with_pickle,
    zipped,
)
from memory import limited_memory, peak_memory
from torch import nn

from tacfast.models import CheckpointError, _pickles, load_checkpoint, read_weights
from tacfast.models import weights as weights_module
from tacfast.models.weights import load_file

safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture
def write(tmp_path):
    """Write bytes to a file whose name says nothing, and give its path."""

    def write(data):
        path = tmp_path / "file"
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def not_loaded(monkeypatch):
    """Fail if torch gets to see the file: what is refused must be refused before."""
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))


def refusal(path):
    """The message with which a file is refused: one line that names it."""
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.isprintable()
    return message


def test_reads_what_torch_and_safetensors_write_whatever_the_file_is_called(write):
    state = small_net().state_dict()
    for data in (saved(state), saved(state, **LEGACY), safetensors.save(dict(state))):
        found = read_weights(write(data))
        assert_same({name: found[name] for name in state}, state)


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_reads_every_kind_of_dense_tensor(write, options):
    kinds = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    kinds += [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]
    state = {str(kind): torch.tensor([[0, 1, 1], [1, 0, 1]]).to(kind) for kind in kinds}
    state["view"] = state["torch.float32"].t()
    state["slice"] = state["torch.float64"][1, 1:]
    state["empty"], state["scalar"] = torch.empty(0, 512), torch.tensor(3.0)
    state["parameter"] = nn.Parameter(torch.ones(2))
    assert_same(read_weights(write(saved(state, **options))), state)


@pytest.mark.parametrize("name", weights_module.STATE_DICT_NAMES)
def test_finds_the_state_dict_beside_other_things(write, name):
    net = small_net()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(torch.optim.Adam(net.parameters()), [2, 4])
    beside = {"epoch": 3, "best": torch.tensor(0.9), "schedule": scheduler.state_dict(), "shape": torch.Size([3, 4])}
    assert_same(read_weights(write(saved({**beside, name: net.state_dict()}))), net.state_dict())


def test_reads_what_python_2_and_torch_0_3_wrote(write):
    """OrderedDict was made from a list of pairs, tensors by another function, and strings were bytes."""

    def old(code):
        code = code.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor")
        hooks = code[code.index(b"\x89h\x00)R") :][:7]  # False, OrderedDict(), memo
        for number in range(256):
            code = code.replace(hooks[:5] + b"q" + bytes([number]) + b"t", b"t")
        return code.replace(b"X\x07\x00\x00\x00storage", b"U\x07storage")

    state = small_net().state_dict()
    assert_same(read_weights(write(with_pickle(old))), state)
    entry = b"h\x00]q\xc8]q\xc9(X\x01\x00\x00\x00aK\x05ea\x85R"  # OrderedDict([["a", 5]])
    path = write(with_pickle(lambda code: code.replace(b"\x89h\x00)R", b"\x89" + entry, 1)))
    assert_same(read_weights(path), state)


class Payload:
    """Creates a file when it is unpickled by a reader that runs code."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("place", ["alone", "beside the weights", "among the weights", "as a name"])
@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_no_code_is_run(write, tmp_path, not_loaded, options, place):
    target = tmp_path / "owned"
    payload, state = Payload(target), small_net().state_dict()
    content = {
        "alone": payload,
        "beside the weights": {"state_dict": state, "extra": payload},
        "among the weights": {**state, "extra": payload},
        "as a name": {(1, payload): 1},
    }[place]
    assert "io.open" in refusal(write(saved(content, **options))).replace("_io", "io")
    assert not target.exists()
    pickle.loads(pickle.dumps(payload)).close()  # the payload does work elsewhere
    assert target.exists()


def test_plain_pickles_and_other_files_are_refused(write, tmp_path, not_loaded):
    assert "plain pickle" in refusal(write(pickle.dumps(Payload(tmp_path / "owned"), protocol=2)))
    assert not (tmp_path / "owned").exists()
    assert "empty" in refusal(write(b""))
    assert "neither" in refusal(write(b"hello, world"))
    assert "no such file" in refusal(tmp_path / "missing")
    assert "not a file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a file" in refusal(tmp_path / "pipe")


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_a_pickled_model_is_refused_with_the_way_out(write, options, not_loaded):
    message = refusal(write(saved(small_net(), **options)))
    assert "torch.nn.modules.container.Sequential" in message
    assert "torch.save(model.state_dict(), ...)" in message


def test_programs_are_refused_by_name(write, tmp_path, not_loaded):
    net = small_net().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, but its files are about
        torch.jit.save(torch.jit.script(net), tmp_path / "script.pt")
        torch.export.save(torch.export.export(net, (torch.randn(2, 1, 4, 4),)), tmp_path / "program.pt2")
    assert "TorchScript" in refusal(tmp_path / "script.pt")
    assert "exported program (.pt2)" in refusal(tmp_path / "program.pt2")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"\x08\x07\x12\x07pytorch\x1a\x05", "an ONNX file, a program whose layers have no names: save the weights of"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "fetch that with git lfs pull"),
        (b"\n<!doctype html><html>", "a page of a web site"),
        (b"\x1f\x8b\x08\x00", "compressed: unpack it first"),
    ],
)
def test_what_comes_in_the_place_of_weights_is_called_by_its_name(write, start, message):
    assert message in refusal(write(start + b"and so on" * 10))


def test_only_dense_real_tensors_are_taken(write, recwarn):
    quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    recwarn.clear()
    cases = {
        "sparse": torch.eye(3).to_sparse(),
        "quantised": quantised,
        "complex": torch.ones(2, dtype=torch.complex64),
        "without data": torch.ones(2, device="meta"),
    }
    for word, tensor in cases.items():
        assert word in refusal(write(saved({"weight": tensor})))
    assert "float8" in refusal(write(safetensors.save({"weight": torch.ones(2).to(torch.float8_e4m3fn)})))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        third = saved(small_net().state_dict(), pickle_protocol=3)
    assert "expected pickle protocol 2, which torch.save uses by default, got 3" in refusal(write(third))
    assert "got int for 'epoch'" in refusal(write(saved({"weight": torch.ones(2), "epoch": 3})))
    assert "a dictionary with ?[31mred?" in refusal(write(saved({"\x1b[31mred\n": 3}))).replace("\ufffd", "?")
    assert "got list" in refusal(write(saved([torch.ones(2)])))
    assert "a dictionary with epoch, data" in refusal(write(saved({"epoch": 3, "data": {"x": torch.ones(2)}})))
    assert "NumPy" in refusal(write(saved({"state_dict": {"weight": torch.ones(2)}, "best": np.float64(0.9)})))
    assert not recwarn


def test_attributes_in_the_file_do_not_replace_methods(write):
    state = small_net().state_dict()  # an OrderedDict with the attribute _metadata
    for name in (b"items", b"keys", b"values", b"get"):
        named = b"X" + struct.pack("<I", len(name)) + name
        path = write(with_pickle(lambda code, named=named: code.replace(b"X\x09\x00\x00\x00_metadata", named)))
        assert not callable(getattr(torch.load(path, weights_only=True), name.decode()))
        assert_same(read_weights(path), state)


def test_every_truncation_is_refused(write):
    for data in seeds():
        for length in [*range(0, len(data), max(1, len(data) // 25)), len(data) - 1]:
            refusal(write(data[:length]))


HUGE = 10**12


def claim(storage=None, size=None, stride=None, offset=None):
    """Change of a pickle: its first tensor, 2 × 1 × 3 × 3 floats, claims other numbers."""

    def number(n):
        return b"\x8a\x08" + struct.pack("<q", n)

    def change(code):
        old = b"K\x12tq\x08QK\x00(K\x02K\x01K\x03K\x03tq\x09(K\x09K\x09K\x03K\x01t"
        if old not in code:  # in the legacy format a storage ends with None
            old = b"K\x12Ntq\x08QK\x00(K\x02K\x01K\x03K\x03tq\x09(K\x09K\x09K\x03K\x01t"
        new = old
        for value, old_bytes, template in (
            (storage, b"K\x12", b"%b"),
            (offset, b"QK\x00", b"Q%b"),
            (size, b"K\x02K\x01K\x03K\x03", b"K\x02K\x01K\x03%b"),
            (stride, b"K\x09K\x09K\x03K\x01t", b"K\x09K\x09K\x03%bt"),
        ):
            new = new if value is None else new.replace(old_bytes, template % number(value))
        assert code.count(old) == 1
        return code.replace(old, new)

    return change


STRIDE = b"(K\x09K\x09K\x03K\x01t"
CLAIMS = {
    "storage": claim(storage=HUGE),
    "storage and view": claim(storage=HUGE, size=HUGE // 10),
    "view": claim(size=HUGE),
    "view a little too large": claim(size=4),
    "view of one number": lambda code: claim(size=10**8)(code).replace(STRIDE, b"(K\x00K\x00K\x00K\x00t"),
    "offset": claim(offset=HUGE),
    "stride": claim(stride=HUGE),
    "negative stride": claim(stride=-1),
    "overflow": claim(size=2**62, stride=2**62),
}


@pytest.mark.parametrize("change", CLAIMS.values(), ids=CLAIMS)
@pytest.mark.parametrize("build", [with_pickle, legacy_with_pickle], ids=["zip", "legacy"])
def test_a_small_file_that_claims_terabytes_is_refused(write, not_loaded, build, change):
    refusal(write(build(change)))


def test_the_claims_are_otherwise_valid(write):
    for build in (with_pickle, legacy_with_pickle):
        for change in (lambda code: code, claim(storage=18, size=3, stride=1, offset=0)):
            assert_same(read_weights(write(build(change))), small_net().state_dict())


class Call:
    """Pickled as the call of ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def shared_tuples(depth):
    """A tuple of few objects whose hash visits 2 ** depth."""
    nested = ()
    for _ in range(depth):
        nested = (nested, nested)
    return nested


def many_calls(function, *arguments):
    return [Call(function, *arguments) for _ in range(1000)]


EXHAUSTING = {
    "tensor": Call(torch.Tensor, HUGE),
    "bytearray": Call(bytearray, HUGE),
    "size": Call(torch.Size, (-1, HUGE)),
    "codec": Call(encode, "a" * 10**6, "punycode"),
    "set": {(1, 2)},
    "device": Call(torch.device, "c" * 10**6),
    "one hash": {k * (2**61 - 1): None for k in range(1000)},
    "copied pairs": many_calls(OrderedDict, [["a", None]] * 5000),
    "copied counts": many_calls(Counter, dict.fromkeys(range(5000))),
    "copied text": many_calls(encode, "a" * 10**6, "latin1"),
}


@pytest.mark.parametrize("hostile", EXHAUSTING.values(), ids=EXHAUSTING)
def test_other_ways_to_exhaust_a_reader_are_refused(write, not_loaded, hostile):
    refusal(write(saved({"state_dict": small_net().state_dict(), "extra": hostile})))


def beside(junk):
    """Change of a pickle: the object becomes a pair with what the instructions ``junk`` leave on the stack."""
    return lambda code: code[:-1] + junk + b"\x86."


@pytest.mark.parametrize(
    "junk",
    [
        b"}" + b")" + b"\x85" * 200_000 + b"K\x01s",
        b"}" + b")" + b"q\xf0h\xf0\x86" * 80 + b"K\x01s",
        b"]q\xf0" + b"h\xf0a" + b"h\xf0)R",
        b"]" * 20_001,
        b"ctorch._utils\n_rebuild_tensor_v2\n}b",
        b"ccollections\nOrderedDict\n)\x81",
        b"X\xff\xff\xff\xff",
        b"h\xf9",
        b"t",
    ],
    ids=["deep", "hash", "recursive", "many", "build", "newobj", "length", "memo", "mark"],
)
@pytest.mark.parametrize("build", [with_pickle, legacy_with_pickle], ids=["zip", "legacy"])
def test_instructions_that_torch_save_does_not_write_are_refused(write, not_loaded, monkeypatch, build, junk):
    if junk.startswith(b"]]"):
        monkeypatch.setattr(_pickles, "MAX_OPCODES", 20_000)
    refusal(write(build(beside(junk))))


def test_zip_bombs_and_odd_archives_are_refused(write, not_loaded):
    contents = records(saved(small_net().state_dict()))
    bomb = zipped({**contents, "archive/data/0": bytes(64 * 2**20)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    assert "compressed" in refusal(write(bomb))
    stored = zipped(contents)
    assert "torch.save did not write it" in refusal(write(zipped({"archive/readme": b""})))
    assert "torch.save did not write it" in refusal(write(zipped({**contents, "other/data.pkl": b""})))
    assert "overlap" in refusal(write(zipped({**contents, "archive/DATA.PKL": b""})))
    assert "damaged" in refusal(write(stored + b"x"))
    written = saved(small_net().state_dict())
    end64 = written.rindex(b"PK\x06\x06")
    for data in (
        written[:end64] + b"PK\x06\x05" + written[end64 + 4 :],
        written[: end64 + 40] + b"\x01" + written[end64 + 41 :],  # size of the directory
        written[: end64 + 64] + b"\x01" + written[end64 + 65 :],  # where this record is
    ):
        assert "damaged or truncated zip" in refusal(write(data))
    for change in (
        lambda end: end[:10] + b"\xff\xff" + end[12:20] + b"\x01" + end[21:],  # a comment that is not there
        lambda end: end[:12] + b"\xff\xff\xff\xff" + end[16:],  # a directory of 4 GB
        lambda end: end[:16] + b"\x00\x00\x00\x00" + end[20:],
    ):
        assert "damaged or truncated zip" in refusal(write(stored[:-22] + change(stored[-22:])))
    # Every entry points to the bytes of the largest.
    tensor = saved({str(i): torch.zeros(1000) for i in range(50)})
    directory = tensor.rindex(b"PK\x06\x06")
    assert tensor.count(b"PK\x01\x02") > 50
    big = bytearray(tensor)
    entries = [i for i in range(directory) if tensor.startswith(b"PK\x01\x02", i)]
    for entry in entries:
        big[entry + 20 : entry + 28] = struct.pack("<2L", len(tensor) // 2, len(tensor) // 2)
    assert "overlap" in refusal(write(bytes(big)))


def test_records_of_another_size_than_promised_are_refused(write, not_loaded):
    contents = records(saved(small_net().state_dict()))
    short = zipped({**contents, "archive/data/0": contents["archive/data/0"][:-4]})
    assert "promises 72 bytes for the tensor record '0' and holds 68 bytes" in refusal(write(short))
    second = b"X\x01\x00\x00\x001q\x0fh\x07K\x02"  # record 1, of two numbers
    again = with_pickle(lambda code: code.replace(second, second.replace(b"1q", b"0q")[:-1] + b"\x7f"))
    assert second in contents["archive/data.pkl"]
    assert "not laid out" in refusal(write(again))
    del contents["archive/data/0"]
    assert "holds nothing" in refusal(write(zipped(contents)))
    legacy = saved({"a": torch.ones(2), "b": torch.zeros(2)}, **LEGACY)
    keys = legacy[legacy.rindex(b"]q\x00(X") + 4 :]  # two times a length of four bytes, a number in digits, memo
    length = 7 + keys[1]
    twice = legacy.replace(keys[: 2 * length], keys[:length] * 2)
    assert twice != legacy
    assert "not laid out" in refusal(write(twice))  # memory as it was found would be taken for the second
    assert "bytes of tensors" in refusal(write(legacy + b"x"))


@pytest.mark.parametrize(
    "data",
    [
        with_header(b"{" * 20)[:8].replace(b"\x14", b"\xff") + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 99_000_000) + b"{" + b" " * 100,
        with_header(b'{"w":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}', b"0000"),
        with_header(b'{"w":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,4]}}', b"0000"),
        with_header(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[9223372036854775807,4]}}', b"0000"),
        with_header(b'{"w":' + b"[" * 10**6, b"0000"),
    ],
    ids=["header", "huge header", "large header", "terabytes", "overflow", "offsets", "nested"],
)
def test_hostile_safetensors_are_refused(write, data):
    before = peak_memory()
    message = refusal(write(data))
    assert peak_memory() - before < 100
    if int.from_bytes(data[:8], "little") > len(data):
        assert "whose header is" in message


def test_tensors_of_safetensors_do_not_depend_on_the_file_any_more(write):
    path = write(safetensors.save({"w": torch.ones(1000)}))
    found = read_weights(path)
    with path.open("r+b") as file:  # in place, as some programs write
        file.write(b"\0" * path.stat().st_size)
    assert torch.equal(found["w"], torch.ones(1000))


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused(tmp_path, count):
    draw, originals, path = random.Random(count), seeds(), tmp_path / "file"
    for original in originals:
        path.write_bytes(original)
        load_checkpoint(path)
    before = peak_memory()
    with limited_memory(256):
        read = read_mutations(path, originals, draw, count)
    assert 0 < read < count / 4
    assert peak_memory() - before < 100


# ---- what training scripts keep beside the weights ---------------------------------------------------------------

BESIDE = {
    "Namespace": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("/a"), w=torch.ones(2)),
    "path": pathlib.PurePosixPath("/a/b"),
    "date": datetime.datetime(2026, 1, 2, 3, 4),
    "duration": datetime.timedelta(3),
    "SimpleNamespace": types.SimpleNamespace(a=[1, {"b": 2}]),
    "defaultdict": defaultdict(int, {"a": 1}),
    "version": torch.__version__,
    "type": [int, dict],
}


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("stranger", BESIDE.values(), ids=BESIDE)
def test_strangers_beside_the_weights_are_passed_over(write, stranger, options):
    expected = small_net().state_dict()
    path = write(saved({"epoch": 3, "args": stranger, "state_dict": expected}, **options))
    assert_same(read_weights(path), expected)
    found = load_file(path)["args"]
    # None of them was built: what is there has no content, and is of no kind that the file named.
    assert found == {"a": 1} if isinstance(stranger, defaultdict) else "Stranger" in repr(found)


def test_settings_of_omegaconf_are_passed_over(write):
    omegaconf = pytest.importorskip("omegaconf")
    expected = small_net().state_dict()
    settings = omegaconf.OmegaConf.create({"a": {"b": [1, 2, "${a.b}"]}, "c": None})
    assert_same(read_weights(write(saved({"hyper_parameters": settings, "state_dict": expected}))), expected)


class Settings(dict):
    """Of a module whose strangers are passed over."""


Settings.__module__, Settings.__qualname__ = "yacs.config", "Settings"


def test_strangers_among_the_weights_are_refused(write, monkeypatch):
    yacs = types.ModuleType("yacs.config")
    yacs.Settings = Settings
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", yacs)
    among = {"weight": torch.ones(2), "path": pathlib.PurePosixPath("/a")}
    assert refusal(write(saved(among))).endswith("got pathlib.PurePosixPath for 'path'")
    settings = {"weight": torch.ones(2), "args": argparse.Namespace(a=1)}
    assert refusal(write(saved(settings))).endswith("got argparse.Namespace for 'args'")
    assert refusal(write(saved({"w": torch.ones(2), "loss": nn.ReLU}))).endswith(
        "got torch.nn.modules.activation.ReLU itself for 'loss'"
    )
    assert refusal(write(saved(pathlib.PurePosixPath("/a")))).endswith("got pathlib.PurePosixPath")
    assert "got OrderedDict for 'x'" in refusal(write(saved({"x": Settings(a=1), "w": torch.ones(2)})))


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_dictionaries_of_other_kinds_are_passed_over_too(write, monkeypatch, options):
    yacs = types.ModuleType("yacs.config")
    yacs.Settings = Settings
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", yacs)
    settings = Settings(a=1, b=Settings(c=[Settings(d={2, 3})]))
    settings.frozen = True  # an attribute, as of yacs and EasyDict
    content = {"hyper_parameters": settings, "state_dict": small_net().state_dict()}
    path = write(saved(content, **options))
    yacs.Settings = None  # whoever built one now would fail
    assert_same(read_weights(path), small_net().state_dict())
    found = load_file(path)["hyper_parameters"]
    assert type(found) is OrderedDict
    assert found == {"a": 1, "b": {"c": [{"d": {2, 3}}]}}


def test_classes_that_are_only_named_are_passed_over(write):
    """As settings have them; and Lightning once kept its callbacks under their classes."""
    named = {"loss": nn.CrossEntropyLoss, "dtype": torch.float16, "run": shutil.copy, "device": torch.device("cuda", 1)}
    content = {"state_dict": small_net().state_dict(), "args": named, "callbacks": {nn.ReLU: {"best": 0.5}}}
    path = write(saved(content))
    assert_same(read_weights(path), small_net().state_dict())
    found = load_file(path)
    assert "Stranger" in repr(found["args"]["loss"])
    assert "Stranger" in repr(found["args"]["run"])
    assert [each.__name__ for each in found["callbacks"]] == ["Stranger"]
    assert found["args"]["device"] == torch.device("cuda", 1)
    for instead in (os.system, nn.ReLU()):  # torch itself refuses the first, even by name
        assert "refused, because it holds more than weights" in refusal(write(saved({**content, "args": instead})))


@pytest.mark.parametrize("function", [os.system, eval, shutil.rmtree, argparse.ArgumentParser])
def test_only_known_strangers_are_passed_over(write, not_loaded, function):
    hostile = {"state_dict": small_net().state_dict(), "args": Call(function, "a")}
    assert "refused, because it holds more than weights" in refusal(write(saved(hostile)))


@pytest.mark.parametrize(("value", "name"), [(frozenset([1]), "frozenset"), (range(3), "range"), (slice(1), "slice")])
def test_plain_python_is_not_taken_for_a_class_of_somebodys_own(write, not_loaded, value, name):
    path = write(saved({"state_dict": small_net().state_dict(), "args": value}))
    assert f"it asks for 'builtins.{name}', whose code would have to run" in refusal(path)


@pytest.mark.parametrize("name", [b"ctypes\nX\n", b"ccollections\ndefaultdict\n"])
def test_a_stranger_called_on_the_same_long_tuple_again_and_again_is_refused(write, not_loaded, name):
    # {"w": one call, "v": the same call, and again, and again}
    code = b"\x80\x02}(X\x01\x00\x00\x00w" + name + b"q\x00(" + b"N" * 100_000 + b"tq\x01Rq\x02"
    code += b"X\x01\x00\x00\x00v(" + b"h\x00h\x01R" * 10_000 + b"tu."
    assert "copies things many times over" in refusal(write(with_pickle(lambda _: code)))


def test_a_pickle_of_ever_new_strangers_is_refused(write, not_loaded):
    code = b"\x80\x02}X\x01\x00\x00\x00w(" + b"".join(b"ctyping\nA%d\n" % i for i in range(1000)) + b"ts."
    assert "more than 100 kinds of objects" in refusal(write(with_pickle(lambda _: code)))


def test_what_the_user_allows_torch_is_not_built_either(write):
    class Namespace:
        def __new__(cls):
            pytest.fail("it was built")

    before = torch.serialization.get_safe_globals()
    path = write(saved({"args": argparse.Namespace(a=1), "state_dict": small_net().state_dict()}))
    torch.serialization.add_safe_globals([(Namespace, "argparse.Namespace")])
    try:
        allowed = torch.serialization.get_safe_globals()
        assert type(load_file(path)["args"]).__name__ == "Stranger"
        assert set(torch.serialization.get_safe_globals()) == set(allowed) > set(before)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def test_threads_read_one_after_the_other(write, monkeypatch):
    """What torch may build is one list for all of them: each would give back what another has put there."""
    expected = small_net().state_dict()
    path = write(saved({"args": argparse.Namespace(a=1), "state_dict": expected}))
    before, load = torch.serialization.get_safe_globals(), torch.load
    first_is_in, second_is_in, first_is_done = threading.Event(), threading.Event(), threading.Event()

    def slow(*args, **options):
        if first_is_in.is_set():
            second_is_in.set()
            first_is_done.wait(60)
        else:
            first_is_in.set()
            second_is_in.wait(0.5)  # which does not come, unless both are let in
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", slow)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(read_weights, path)
        first_is_in.wait(60)
        second = threads.submit(read_weights, path)
        assert_same(first.result(), expected)
        first_is_done.set()
        assert_same(second.result(), expected)
    assert set(torch.serialization.get_safe_globals()) == set(before)
