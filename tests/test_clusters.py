"""How a process learns which others it runs with."""

import os
import socket
import subprocess
import sys

import pytest

from instructrec_jax.cli import main
from instructrec_jax.errors import UserError
from instructrec_jax.parallel import processes
from instructrec_jax.parallel.clusters import ADDRESS, INDEX, NUMBER, Place, find

SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in (ADDRESS, NUMBER, INDEX, "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)


def test_three_variables_say_where_a_process_belongs(monkeypatch):
    assert find({}) is None
    for name, value in ((ADDRESS, "node1:8476"), (NUMBER, "4"), (INDEX, "3")):
        monkeypatch.setenv(name, value)
    assert find({}) == Place(index=3, number=4, address="node1:8476")
    flags = {ADDRESS: "node2:1", NUMBER: "2", INDEX: "0"}
    assert find(flags) == Place(index=0, number=2, address="node2:1")
    monkeypatch.setenv(NUMBER, "1")
    assert find({}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({INDEX: None}, f"{ADDRESS}, {NUMBER} is set, but not {INDEX}; .*{NUMBER}=1 to run alone"),
        ({NUMBER: None, INDEX: None}, f"{ADDRESS} is set, but not {NUMBER}, {INDEX}"),
        ({ADDRESS: "node1"}, f"{ADDRESS} is 'node1'; expected HOST:PORT"),
        ({ADDRESS: "node1:99999"}, "expected HOST:PORT"),
        ({INDEX: "4"}, f"{INDEX} is 4 and {NUMBER} is 4; expected an index from 0 to 3"),
        ({INDEX: "-1"}, f"{INDEX} is '-1'; expected a whole number"),
        ({NUMBER: "four"}, f"{NUMBER} is 'four'; expected a whole number"),
    ],
)
def test_variables_that_cannot_be_meant_are_refused(monkeypatch, changes, message):
    for name, value in ({ADDRESS: "node1:8476", NUMBER: "4", INDEX: "3"} | changes).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        find({})


@pytest.mark.parametrize(("per_node", "has_host"), [("1(x2)", True), ("2", False)])
def test_tasks_of_slurm_run_together_and_one_alone_on_its_node_has_all_gpus(
    monkeypatch, per_node, has_host
):
    for name, value in (SLURM | {"SLURM_STEP_TASKS_PER_NODE": per_node}).items():
        monkeypatch.setenv(name, value)
    assert find({}) == Place(index=1, number=2, method="slurm", has_host=has_host)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert find({}) is None
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv(NUMBER, "1")
    assert find({}) is None, "each task is to run alone"


def test_a_cluster_that_jax_cannot_understand_is_told(monkeypatch):
    for name, value in (SLURM | {"SLURM_NTASKS": "two"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="cannot tell which process of it this is"):
        find({})


def test_the_port_of_another_program_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(UserError, match=f"process 0 cannot wait at {ADDRESS}={address}: Addr"):
            processes.initialise(address, 2, 0)


def test_flags_of_t5x_are_taken(capsys):
    gin = "--gin_file=gin/models/t5_tiny.gin"
    assert main.main(["train", gin, "--multiprocess_gpu"]) == 2
    assert "--multiprocess_gpu is given, but nothing says" in capsys.readouterr().err
    flags = ["--coordinator_address=node1:8476", "--process_count=2", "--process_index=2"]
    assert main.main(["train", gin, *flags]) == 2
    assert f"{INDEX} is 2 and {NUMBER} is 2; expected an index" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("index", "message"), [(0, "not all of the 2 processes came"), (1, "process 0 does not answer")]
)
def test_a_process_whose_others_do_not_come_ends_with_a_message(index, message):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    code = "import sys; from instructrec_jax.parallel.processes import initialise as join; "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}join({address!r}, 2, {index})"],
        env=os.environ | {processes.START_SECONDS: "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("instructrec: ") and message in done.stderr
