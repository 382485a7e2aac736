"""`tacfast info` on machines of every kind: the build and torch's devices are pretended."""

import json

import pytest
import torch

import tacfast
from tacfast import _info, cli

commands = pytest.importorskip("tacfast.commands")
from typer.testing import CliRunner  # noqa: E402

CPU = {"cpu_instruction_set": "avx2"}
CUDA = CPU | {"cuda_archs": "80,90", "cuda_runtime": 13000, "cuda_driver": 13020, "cuda_devices": 1, "cuda_message": ""}
H100 = {"name": "NVIDIA [H100]", "compute_capability": "9.0", "memory_bytes": 85 * 10**9}
NO_DRIVER = {"cuda_driver": 0, "cuda_devices": 0, "cuda_message": "CUDA driver version is insufficient"}
OLD_DRIVER = NO_DRIVER | {"cuda_driver": 12040}
NO_DEVICE = {"cuda_devices": 0, "cuda_message": "no CUDA-capable device is detected"}

# build_info, devices of torch, what must be printed
MACHINES = {
    "usable": (CUDA, [H100, H100], ["device 1", "NVIDIA [H100], compute capability 9.0, 79.2 GiB", "13.0, for 80,90"]),
    "an older minor version": (CUDA | {"cuda_runtime": 13030}, [H100], ["13.3, for 80,90", "13.2"]),
    "an extension that is missing": ({}, [], ["missing", "plain torch, much more slowly"]),
    "a build without CUDA": (CPU, [H100], ["avx2", "This build has no CUDA part", "NVIDIA [H100]"]),
    "no driver": (CUDA | NO_DRIVER, [], ["There is no NVIDIA driver on this machine"]),
    "an old driver": (
        CUDA | OLD_DRIVER,
        [],
        ["too old: it supports CUDA 12.4, and this build needs CUDA 13.0 or later"],
    ),
    "no device": (CUDA | NO_DEVICE, [], ["finds no usable device (no CUDA-capable device is detected)"]),
    "no device, an older minor version": (
        CUDA | NO_DEVICE | {"cuda_runtime": 13030},
        [],
        ["finds no usable device (no CUDA-capable device is detected)"],
    ),
    "an old device": (
        CUDA,
        [H100, H100 | {"name": "Tesla T4", "compute_capability": "7.5"}],
        ["Tesla T4 is too old for this build, which has code for architectures 80,90."],
    ),
    "a build for all": (CUDA | {"cuda_archs": "all-major"}, [H100], ["13.0, for all-major"]),
    "no device, no reason": (CUDA | {"cuda_devices": 0}, [], ["finds no usable device (it gives no reason)"]),
    "a torch without CUDA": (CUDA, [], [f"torch {torch.__version__} cannot use it"]),
}
FINE = ("usable", "an older minor version", "a build for all")


@pytest.fixture
def run(monkeypatch):
    """Run ``tacfast info`` on a pretended machine; returns what it prints."""

    def invoke(machine, *arguments):
        build, devices, _ = MACHINES[machine]
        monkeypatch.setattr(_info, "build_info", lambda: build)
        monkeypatch.setattr(_info, "torch_devices", lambda: devices)
        result = CliRunner().invoke(commands.app, ["info", *arguments], env={"COLUMNS": "80"})
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        return result.stdout

    return invoke


@pytest.mark.parametrize("machine", MACHINES)
def test_every_machine_is_described_in_words(run, machine):
    printed = run(machine)
    words = " ".join(printed.split())
    for expected in MACHINES[machine][2]:
        assert expected in words
    assert "Traceback" not in printed
    assert "None" not in printed
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize("machine", MACHINES)
def test_json_is_one_object(run, machine):
    found = json.loads(run(machine, "--json"))
    build, devices, _ = MACHINES[machine]
    assert found["tacfast"] == tacfast.__version__
    assert found["torch"] == torch.__version__
    assert found["cpu"] == {"code_path": build.get("cpu_instruction_set"), "threads": torch.get_num_threads()}
    assert found["build"]["compiled"] == bool(build)
    assert found["build"]["cuda_archs"] == build.get("cuda_archs")
    assert found["devices"] == devices
    assert len(found["messages"]) == (machine not in FINE)


def test_this_machine(capsys):
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["devices"]) == torch.cuda.device_count()


@pytest.mark.parametrize(("number", "text"), [(0, None), (12040, "12.4"), (13000, "13.0"), (11080, "11.8")])
def test_versions_as_the_runtime_counts_them(number, text):
    assert _info.cuda_version(number) == text


@pytest.mark.parametrize("error", [RuntimeError("CUDA error 804"), AssertionError("not compiled with CUDA")])
def test_a_torch_that_fails_has_no_devices(monkeypatch, error):
    def fail(_):
        raise error

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    assert _info.torch_devices() == []


def test_what_torch_says_of_an_old_driver_is_not_repeated(monkeypatch, recwarn):
    def warn():
        import warnings

        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return 0

    monkeypatch.setattr(torch.cuda, "device_count", warn)
    assert _info.torch_devices() == []
    assert not recwarn


def test_devices_of_torch(monkeypatch):
    class Properties:
        name, major, minor, total_memory = "H100", 9, 0, 85 * 10**9

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    assert _info.torch_devices() == [H100 | {"name": "H100"}]


@pytest.mark.parametrize(("cuda", "words"), [(None, "was built without CUDA"), ("13.2", "built for CUDA 13.2, which")])
def test_why_torch_cannot_use_a_device(monkeypatch, cuda, words):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    (message,) = _info.explain(CUDA, [])
    assert words in message
