"""`doctor`: each fault of a machine is planted, found and named with what to mend."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from instructrec_jax.checkpoints import store
from instructrec_jax.cli import main
from instructrec_jax.stages.doctor import DEVICE_CHECKS, devices, doctor, machine
from instructrec_jax.stages.doctor.checks import Problem, run_check
from instructrec_jax.stages.doctor.machine import Machine, folder_checks, nearest_folder

GIB = 2**30
FINE = Machine(
    packages={"jax": "0.10.2", "jaxlib": "0.10.2", "numpy": "2.4.6"},
    needed=["jax>=0.10", "numpy>=2.0", 'torch>=2.5; extra == "parity"'],
    needed_by_jax=[
        "jaxlib<=0.10.2,>=0.10.2",
        'libtpu==0.0.42.*; extra == "tpu"',
        'jax-cuda13-plugin<=0.10.2,>=0.10.2; extra == "cuda13"',
    ],
    has_gpu=False,
    has_tpu=False,
    driver_cuda=None,
    memory_bytes=8 * GIB,
)
TPU = {"libtpu": "0.0.42.1"}
GPU = {"jax-cuda13-plugin": "0.10.2", "jax-cuda13-pjrt": "0.10.2"}


def changed(packages=None, without="", **fields):
    """The machine above, another one in some ways."""
    kept = {**FINE.packages, **(packages or {})}
    kept.pop(without, None)
    return dataclasses.replace(FINE, packages=kept, **fields)


@pytest.mark.parametrize(
    "found",
    [
        FINE,
        changed(TPU, has_tpu=True),
        changed(GPU, has_gpu=True, driver_cuda=(13, 0)),
        changed(GPU, has_gpu=True, driver_cuda=(14, 1)),
    ],
)
def test_a_machine_that_has_all_is_fine(found):
    assert [check.name for check in found.checks() if check.mend] == []


@pytest.mark.parametrize(
    ("name", "found", "fault", "mend"),
    [
        ("packages", changed(without="numpy"), "numpy is not installed", "pip install"),
        ("packages", changed({"numpy": "1.26.0"}), "numpy is 1.26.0, expected >=2.0", "-e ."),
        ("libraries", changed(has_tpu=True), "libtpu is not", "'.[tpu]'"),
        ("libraries", changed(has_gpu=True, driver_cuda=(13, 0)), "plugin is not", "'.[gpu]'"),
        ("libraries", changed({"libtpu": "0.0.30"}), "libtpu is 0.0.30", "'.[tpu]'"),
        ("libraries", changed({"jax-cuda13-plugin": "0.9.0"}), "plugin is 0.9.0", "'.[gpu]'"),
        ("driver", changed(GPU, has_gpu=True), "its driver is not", "NVIDIA"),
        ("driver", changed(GPU, driver_cuda=(12, 8)), "up to 12.8", "'jax[cuda12]'"),
        ("memory", changed(memory_bytes=GIB), "1.0 GiB free", "more memory"),
    ],
)
def test_a_fault_of_the_machine_is_found(name, found, fault, mend):
    wrong = {check.name: check for check in found.checks() if check.mend}
    assert set(wrong) == {name}
    assert fault in wrong[name].found and mend in wrong[name].mend


def test_memory_is_that_of_the_container_where_it_has_less(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:    4096 kB\n")
    assert machine._memory_bytes(tmp_path) == 4096 * 1024
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("1000\n")
    for limit, left in (("max", 4096 * 1024), ("3000", 2000)):
        (group / "memory.max").write_text(limit + "\n")
        assert machine._memory_bytes(tmp_path) == left


def test_folders_that_cannot_be_used_are_found_and_nothing_is_left(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "records").mkdir()
    checks = folder_checks(tmp_path / "runs" / "model", tmp_path / "records")
    assert not [check for check in checks if check.mend]
    assert "can be made" in checks[0].found and "can be read" in checks[1].found
    checks = folder_checks(tmp_path / "file" / "model", tmp_path / "file")
    wrong = {check.name: check.found for check in checks if check.mend}
    assert set(wrong) == {"MODEL_DIR", "DATA_DIR"}
    assert "Not a directory" in wrong["MODEL_DIR"] and "Not a directory" in wrong["DATA_DIR"]
    assert sorted(os.listdir(tmp_path)) == ["file", "records"]
    assert nearest_folder(tmp_path / "runs" / "model") == tmp_path


def test_a_full_disk_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=GIB))
    (check,) = folder_checks(None, None)
    assert check.name == "disk" and "1.0 GiB free" in check.found and "remove files" in check.mend


def test_each_check_of_the_devices_is_fine_on_eight_of_them(tmp_path):
    for look in (
        lambda: devices.look_at_devices(has_gpu=False, has_tpu=False),
        devices.look_at_all_reduce,
        lambda: devices.look_at_checkpoint(tmp_path / "tried"),
    ):
        assert isinstance(look(), str)


def test_an_accelerator_that_jax_leaves_alone_is_found(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    found = devices.look_at_devices(has_gpu=True, has_tpu=False)
    assert isinstance(found, Problem) and "JAX_PLATFORMS=cuda" in found.mend
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # asked for
    assert isinstance(devices.look_at_devices(has_gpu=True, has_tpu=False), str)


def test_a_wrong_sum_over_the_devices_is_found(monkeypatch):
    monkeypatch.setattr(devices.jnp, "sum", lambda array: jax.numpy.max(array))
    found = devices.look_at_all_reduce()
    assert isinstance(found, Problem) and "is 8, expected 36" in found.found


def test_a_checkpoint_that_is_not_read_back_as_saved_is_found(tmp_path, monkeypatch):
    def damaged(self, step, abstract):
        return jax.tree.map(lambda array: array + 1, restore(self, step, abstract))

    restore = store.CheckpointStore.restore
    monkeypatch.setattr(store.CheckpointStore, "restore", damaged)
    found = devices.look_at_checkpoint(tmp_path / "tried")
    assert isinstance(found, Problem) and "not what was saved" in found.found


def test_whatever_a_check_raises_is_a_problem():
    def look():
        raise RuntimeError("two\n  lines")

    check = run_check("disk", look)
    assert check.found == "failed with RuntimeError: two lines" and check.mend


def told(report):
    return {check.name: check for check in report.checks}


def test_all_checks_run_although_the_devices_of_the_platform_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    report = doctor(model_dir=str(tmp_path / "model"), json_path=str(tmp_path / "found.json"))
    checks = told(report)
    assert checks["MODEL_DIR"].is_fine and set(DEVICE_CHECKS) <= set(checks)
    assert "tpu" in checks["devices"].found and checks["devices"].mend
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["num_problems"] == len(report.problems) > 0
    assert [each["name"] for each in written["checks"]] == [check.name for check in report.checks]


def test_a_cache_that_keeps_nothing_is_found(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "cache"))
    checks = told(doctor(model_dir=str(tmp_path / "model")))
    assert "JAX_COMPILATION_CACHE_DIR" in checks["compile cache"].mend
    assert checks["checkpoint"].is_fine and os.listdir(tmp_path) == ["file"]


def test_devices_that_hang_are_bounded_and_the_rest_is_told(tmp_path, monkeypatch):
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    checks = told(doctor(seconds=1.0))
    assert checks["packages"].found and "did not end within 1 s" in checks["devices"].found
    assert [checks[name].found for name in DEVICE_CHECKS[1:]] == ["not looked at"] * 3


def test_other_processes_that_never_come_are_named(monkeypatch):
    for name, value in (("COORDINATOR_ADDRESS", "127.0.0.1:1"), ("NUM_PROCESSES", "2"),
                        ("PROCESS_ID", "1")):  # fmt: skip
        monkeypatch.setenv(f"JAX_{name}", value)
    checks = told(doctor(seconds=8.0))
    assert "all 2 processes" in checks["devices"].mend and "127.0.0.1:1" in checks["devices"].mend


@pytest.mark.slow
def test_two_processes_try_their_devices_together(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [sys.executable, "-m", "instructrec_jax", "doctor", f"--model_dir={tmp_path}/model"]
    start.append(f"--json={tmp_path}/found.json")
    both = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    running = [
        subprocess.Popen(
            start,
            env={**os.environ, **both, "JAX_PROCESS_ID": str(id),
                 "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
            stdout=subprocess.PIPE, text=True,
        )
        for id in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert "the sum over 4 devices is right" in said[0]
    assert sorted(os.listdir(tmp_path)) == ["found.json", "found.json.1"]


def test_the_verb_ends_with_one_where_something_is_to_be_mended(capsys, monkeypatch):
    found = SimpleNamespace(checks=lambda: [run_check("memory", lambda: Problem("0 B", "buy"))])
    found.has_gpu = found.has_tpu = False
    monkeypatch.setattr(machine.Machine, "read", classmethod(lambda _: found))
    assert main.main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "PROBLEM  memory" in said and "to mend: buy" in said and "1 problem found" in said
    assert main.main(["doctor", "--model_dir=gs://bucket/model"]) == 2
    assert "mount the bucket" in capsys.readouterr().err
