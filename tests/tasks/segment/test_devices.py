"""Which devices there are, who gets which, and what a worker says that has another than it was given."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slidesam.tasks.errors import DeviceError
from slidesam.tasks.segment.devices import (
    CPU,
    GIVEN,
    Gpu,
    Instance,
    check_given,
    check_torch,
    nvidia_smi,
    parse_smi,
    share,
    visible_devices,
)
from tests.support import DATA

LISTS = DATA / "nvidia_smi"
GPUS = [f"GPU-{str(k) * 8}-1111-2222-3333-444444444444" for k in range(4)]
A = [f"MIG-aaaaaaaa-{str(k) * 4}-5555-8888-999999999999" for k in range(3)]
B = "MIG-bbbbbbbb-0000-5555-8888-999999999999"
OLD = [f"MIG-{GPUS[0]}/{k}/0" for k in (1, 2)]
GUIDE = [f"MIG-{c * 8}-{c * 4}-{c * 4}-{c * 4}-{c * 12}" for c in "bcde"]


def smi(name: str) -> str:
    return (LISTS / f"{name}.txt").read_text()


def test_lists_are_read() -> None:
    assert [(gpu.index, gpu.name, gpu.uuid, gpu.instances) for gpu in parse_smi(smi("four_gpus"))] == [
        (k, "NVIDIA A100-SXM4-80GB", GPUS[k], ()) for k in range(4)
    ]
    first, second = parse_smi(smi("mig"))
    assert first.instances == (
        Instance("3g.40gb", 0, A[0]),
        Instance("1g.10gb+me", 1, A[1]),
        Instance("1c.2g.20gb", 2, A[2]),
    )
    assert second.instances == (Instance("7g.80gb", 0, B),)
    assert parse_smi(smi("mig_without_instances")) == (Gpu(0, "NVIDIA H100 80GB HBM3", GPUS[0]),)
    assert [instance.uuid for instance in parse_smi(smi("old_mig"))[0].instances] == OLD
    (gpu,) = parse_smi(smi("guide"))
    assert gpu.name == "A100-SXM4-40GB"
    assert gpu.instances == tuple(Instance("1g.5gb", k, uuid) for k, uuid in enumerate(GUIDE))


@pytest.mark.parametrize(
    "text", [smi("none"), "", "  MIG 1g.5gb Device 0: (UUID: MIG-1)\n", "NVIDIA-SMI has failed because it couldn't\n"]
)
def test_what_lists_no_gpu_is_none(text: str) -> None:
    assert parse_smi(text) == ()


@given(st.text())
def test_no_text_is_too_odd(text: str) -> None:
    parse_smi(text)


@pytest.mark.parametrize(
    ("visible", "listed", "expected"),
    [
        # Unset: all that nvidia-smi shows.
        (None, None, []),
        (None, "none", []),
        (None, "four_gpus", ["0", "1", "2", "3"]),
        (None, "mig", [*A, B]),
        (None, "old_mig", OLD),
        (None, "guide", GUIDE),
        (None, "mixed", [*A[:2], GPUS[1]]),
        (None, "mig_without_instances", ["0"]),
        # Set, and nothing to compare with.
        ("0", None, ["0"]),
        (" 2 , 3 ", None, ["2", "3"]),
        (GPUS[0], None, [GPUS[0]]),
        (",".join(GUIDE), None, GUIDE),
        ("0,1", "none", ["0", "1"]),
        # None, in all the ways in which it is said.
        ("", None, []),
        ("", "four_gpus", []),
        ("-1", "four_gpus", []),
        ("NoDevFiles", "four_gpus", []),
        ("none", None, []),
        # What isn't valid hides all that follows.
        ("1,-1,2", "four_gpus", ["1"]),
        ("1,,2", None, ["1"]),
        ("1,x,2", None, ["1"]),
        ("1,7,2", "four_gpus", ["1"]),
        ("1,²", "four_gpus", ["1"]),
        ("GPU-f", "four_gpus", []),
        ("GPU-", "four_gpus", []),
        # Indices and UUIDs of GPUs, whole and cut short.
        ("3,1", "four_gpus", ["3", "1"]),
        ("GPU-2,GPU-00000000", "four_gpus", ["GPU-2", "GPU-00000000"]),
        ("0,0", "four_gpus", ["0"]),
        # A GPU that is divided stands for its instances.
        ("0", "mig", A),
        ("1", "mig", [B]),
        ("1,0", "mig", [B, *A]),
        (GPUS[0], "mig", A),
        (GPUS[0][:12], "old_mig", OLD),
        (",".join([A[2], A[0]]), "mig", [A[2], A[0]]),
        (f"0,{A[0]}", "mig", A),
        ("0,1", "mixed", [*A[:2], GPUS[1]]),
        ("1", "mixed", [GPUS[1]]),
    ],
)
def test_visible_devices(visible: str | None, listed: str | None, expected: list[str]) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert list(visible_devices(environment, None if listed is None else smi(listed))) == expected


@given(st.lists(st.text("01234567-GPUMI, x"), max_size=6).map(",".join), st.sampled_from([*LISTS.glob("*.txt"), None]))
def test_devices_are_named_once_and_without_commas(visible: str, listed: Path | None) -> None:
    found = visible_devices({"CUDA_VISIBLE_DEVICES": visible}, listed and listed.read_text())
    assert len(set(found)) == len(found)
    assert all(name and "," not in name and name == name.strip() for name in found)


def test_nvidia_smi_is_asked(fake_smi) -> None:
    fake_smi(smi("guide"))
    assert nvidia_smi() == smi("guide")


def test_nvidia_smi_that_fails_says_nothing(fake_smi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_smi(smi("none"), code=6)
    assert nvidia_smi() is None
    monkeypatch.setenv("PATH", str(tmp_path / "nothing-here"))
    assert nvidia_smi() is None


def test_nvidia_smi_that_hangs_says_nothing(fake_smi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slidesam.tasks.segment.devices._SMI_SECONDS", 0.2)
    fake_smi(smi("guide"), seconds=30)
    assert nvidia_smi() is None


@pytest.fixture
def fake_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Puts an nvidia-smi of one's own first on PATH."""

    def fake(text: str, code: int = 0, seconds: int = 0) -> None:
        (tmp_path / "listed").write_text(text)
        command = tmp_path / "nvidia-smi"
        command.write_text(
            f'#!/bin/sh\n[ "$1" = -L ] || exit 2\n[ {seconds} = 0 ] || exec sleep {seconds}\ncat {tmp_path}/listed\nexit {code}\n'
        )
        command.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return fake


@given(st.lists(st.uuids().map(str), unique=True, max_size=8), st.integers(1, 20))
def test_devices_are_shared_evenly(devices: list[str], workers: int) -> None:
    shared = share(devices, workers)
    assert len(shared) == workers
    counts = [shared.count(device) for device in devices[:workers]] or [shared.count(CPU)]
    assert sum(counts) == workers
    assert max(counts) - min(counts) <= 1
    assert list(dict.fromkeys(shared)) == (devices[:workers] or [CPU])


def test_nobody_shares_nothing() -> None:
    with pytest.raises(ValueError, match="0 workers can't share devices"):
        share(["0"], 0)


@pytest.mark.parametrize(
    ("given_device", "seen"),
    [(None, None), (None, "0,1"), ("1", "1"), (GUIDE[0], GUIDE[0]), (CPU, ""), (CPU, None)],
)
def test_what_was_given_is_there(given_device: str | None, seen: str | None) -> None:
    check_given(variables(given_device, seen))


@pytest.mark.parametrize(
    ("given_device", "seen", "found"),
    [
        ("1", "0", "CUDA_VISIBLE_DEVICES is '0'"),
        ("1", "1,2", "CUDA_VISIBLE_DEVICES is '1,2'"),
        ("1", "", "CUDA_VISIBLE_DEVICES is ''"),
        ("1", None, "CUDA_VISIBLE_DEVICES is unset"),
        (CPU, "0", "CUDA_VISIBLE_DEVICES is '0'"),
        (GUIDE[0], GUIDE[1], f"CUDA_VISIBLE_DEVICES is '{GUIDE[1]}'"),
    ],
)
def test_another_device_is_refused(
    given_device: str, seen: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "gpu-03")
    with pytest.raises(DeviceError, match=f"^gpu-03: .* given the device {given_device}, but {found}: .*so remove"):
        check_given(variables(given_device, seen))


def variables(given_device: str | None, seen: str | None = None) -> dict[str, str]:
    named = {GIVEN: given_device, "CUDA_VISIBLE_DEVICES": seen}
    return {name: value for name, value in named.items() if value is not None}


@pytest.fixture
def fake_torch(monkeypatch: pytest.MonkeyPatch):
    """A torch that finds some GPUs: there is none where the tests run."""

    def fake(*uuids: str) -> None:
        cuda = SimpleNamespace(
            is_available=lambda: bool(uuids),
            device_count=lambda: len(uuids),
            get_device_properties=lambda index: SimpleNamespace(uuid=uuids[index]),
        )
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))

    return fake


@pytest.mark.parametrize(
    "given_device", [None, CPU, "0", "MIG-1", GPUS[1], GPUS[1].removesuffix("-1111-2222-3333-444444444444")]
)
def test_torch_on_the_device_that_was_given(given_device: str | None, fake_torch) -> None:
    fake_torch(GPUS[1].removeprefix("GPU-"))
    check_torch(variables(given_device))


def test_torch_may_write_the_uuid_as_nvidia_smi_does(fake_torch) -> None:
    fake_torch(GPUS[1])
    check_torch(variables(GPUS[1]))


def test_without_torch_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    check_torch(variables("0"))
    assert "torch" not in sys.modules


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ((), "torch finds no GPU: .*--nv"),
        (("a", "b"), "torch finds 2: .*CUDA_VISIBLE_DEVICES"),
        (("a",), "torch computes on GPU-a: "),
    ],
)
def test_torch_elsewhere_is_refused(found: tuple[str, ...], words: str, fake_torch) -> None:
    fake_torch(*found)
    with pytest.raises(DeviceError, match=f"given the device {GPUS[0]}, but {words}"):
        check_torch(variables(GPUS[0]))


def test_a_worker_without_a_gpu_needs_none(fake_torch) -> None:
    fake_torch()
    check_torch(variables(CPU))
    check_torch({})
