"""What `info` says, with and without a GPU's driver; and which device a word means."""

import json
import subprocess

import pytest
import torch

from medseg_diff import __version__, device
from medseg_diff.errors import EnvironmentFault, UsageError
from medseg_diff.recipes.lookup import recipe_names
from medseg_diff.tasks import info


def test_recipes_versions_and_processors():
    found = info.info()
    assert found["medseg_diff"] == __version__ and found["cpus"] >= 1
    assert {f"segment/{name}" for name in recipe_names("segment")} <= set(found["recipes"])
    assert found["packages"]["torch"].startswith("2.")
    assert json.loads(json.dumps(found)) == found
    assert found["starter"]["patients"] == 3 and found["starter"]["model_card"].endswith("starter/MODEL_CARD.md")


def nvidia_smi(monkeypatch, answer):
    monkeypatch.setattr(info.shutil, "which", lambda name: "/usr/bin/nvidia-smi")

    def run(command, **options):
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess(command, 0, answer, "")

    monkeypatch.setattr(info.subprocess, "run", run)


def test_gpus_go_by_the_names_that_the_driver_gives_them(monkeypatch):
    nvidia_smi(monkeypatch, "0, NVIDIA H200, 143771 MiB, 570.1\n1, NVIDIA L4, 23034 MiB, 570.1\n\n")
    assert info.info()["gpus"] == [
        {"index": "0", "name": "NVIDIA H200", "memory": "143771 MiB", "driver": "570.1"},
        {"index": "1", "name": "NVIDIA L4", "memory": "23034 MiB", "driver": "570.1"},
    ]


@pytest.mark.parametrize(
    "fault", [OSError("gone"), subprocess.TimeoutExpired("x", 10), subprocess.CalledProcessError(9, "x")]
)
def test_a_driver_that_fails_is_no_gpu(monkeypatch, fault):
    nvidia_smi(monkeypatch, fault)
    assert info.info()["gpus"] == []


def test_without_a_driver_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(info.shutil, "which", lambda name: None)
    assert info.info()["gpus"] == []


@pytest.mark.parametrize("word", ["gpu", "cuda:x", "cuda:-1", "", "CPU"])
def test_a_word_that_is_no_device_is_refused(word):
    with pytest.raises(UsageError, match=r"no device is called .*Fix: use auto, cpu, cuda, cuda:N or mps"):
        device.find_device(word)


def test_a_device_that_is_absent_is_the_environments_fault(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device.find_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(EnvironmentFault, match="this machine has no cuda:1"):
        device.find_device("cuda:1")
    with pytest.raises(EnvironmentFault, match="this machine has no cpu:1"):
        device.find_device("cpu:1")


def test_auto_takes_what_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.find_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device.find_device("auto").type == "cuda"


def test_precision_is_as_asked_or_what_the_hardware_multiplies(monkeypatch):
    cpu = torch.device("cpu")
    assert device.find_precision("fp32", cpu) == "fp32" and device.find_precision("bf16", cpu) == "bf16"
    for flags, wanted in (("flags: avx512_bf16 x", "bf16"), ("flags: avx2", "fp32"), ("", "fp32")):
        monkeypatch.setattr(device, "_cpu_flags", lambda flags=flags: flags)
        assert device.find_precision("auto", cpu) == wanted
