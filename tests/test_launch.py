"""The scripts of launch/: what they start, what they show of it, and how a run ends and goes on."""

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
ARGUMENTS = ['--gin.MODEL_DIR="a \'b\\"', "--gin.X=$(date) `date` \n<NAME> &"]
# Variables that each place needs, and those that its command has to get.
PLACES = {
    "instructrec": ({}, {}),
    "local_cpu": ({"NUM_DEVICES": "4"}, {"JAX_PLATFORMS": "cpu"}),
    "gpu": ({}, {"JAX_PLATFORMS": "cuda"}),
    "tpu_vm": ({}, {"JAX_PLATFORMS": "tpu"}),
    "tpu_pod": ({"TPU_NAME": "pod", "ZONE": "us-west4-a", "TPU_DIR": "a b"}, {}),
    "slurm": (
        {"SLURM_JOB_NUM_NODES": "2"},
        {"EXIT_CODE_IF_STOPPED": "143"},
    ),
    "kubernetes": ({"IMAGE": "registry/a:gpu", "ACCELERATOR": "gpu", "HOSTS": "2"}, {}),
}
# Stands for a program: writes its words, some variables and its input to a file of its own.
FAKE = """#!/usr/bin/env bash
{{ printf '%s\\0' "${{0##*/}}" "$@"; env | grep -E '^(JAX_|EXIT_CODE|XLA_)' | sort | tr '\\n' '\\0'
  if [[ "${{0##*/}}" == kubectl ]]; then cat; fi; }} > {folder}/$$
"""


@pytest.fixture
def place(tmp_path):
    """Runs scripts where the programs that they start are fakes; returns what these were told."""
    started, programs = tmp_path / "started", tmp_path / "programs"
    programs.mkdir()
    for name in ("instructrec", "gcloud", "srun", "scontrol", "kubectl"):
        (programs / name).write_text(FAKE.format(folder=started))
        (programs / name).chmod(0o755)

    def run(*words, **variables):
        shutil.rmtree(started, ignore_errors=True)
        started.mkdir()
        environment = {"PATH": f"{programs}:/usr/bin:/bin", "LOG_DIR": str(tmp_path / "logs")}
        done = subprocess.run(
            [str(word) for word in words],
            env={**environment, **variables},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        calls = [path.read_text() for path in started.iterdir()]
        return done, sorted(calls)

    run.logs = tmp_path / "logs"
    return run


def script(name):
    return LAUNCH / f"{name}.sh"


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("verb", ["train", "eval", "score", "generate", "build"])
def test_print_shows_what_a_script_runs_and_runs_nothing(name, verb, place):
    variables, _ = PLACES[name]
    shown, calls = place(script(name), "--print", verb, *ARGUMENTS, **variables)
    assert shown.returncode == 0 and not calls and not place.logs.exists(), shown.stderr
    _, ran = place(script(name), verb, *ARGUMENTS, **variables)
    assert ran
    started = dict(word.split("=", 1) for word in ran[0].split("\0") if re.match("[A-Z_]+=", word))
    inherited = started if name == "slurm" else {}  # srun passes on what the script has set
    _, of_shown = place("bash", "-c", shown.stdout, **variables, **inherited)
    assert of_shown == ran


@pytest.mark.parametrize("name", PLACES)
def test_a_script_hands_over_verb_arguments_and_settings(name, place):
    variables, settings = PLACES[name]
    done, (call,) = place(script(name), "train", *ARGUMENTS, **variables)
    assert done.returncode == 0
    if name in ("instructrec", "local_cpu", "gpu", "tpu_vm"):
        assert call.split("\0")[: 2 + len(ARGUMENTS)] == ["instructrec", "train", *ARGUMENTS]
    for key, value in settings.items():
        assert f"{key}={value}" in call.split("\0")


def test_processes_on_one_machine_get_their_numbers_and_one_address(place):
    done, calls = place(script("local_cpu"), "score", NUM_PROCESSES="3")
    assert done.returncode == 0 and len(calls) == 3
    assert [f"JAX_PROCESS_ID={id}" in call for id, call in enumerate(calls)] == [True] * 3
    assert all("JAX_NUM_PROCESSES=3" in call for call in calls)
    assert len(set(re.findall(r"JAX_COORDINATOR_ADDRESS=127.0.0.1:\d+", "".join(calls)))) == 1
    shown, _ = place(script("local_cpu"), "--print", "score", NUM_PROCESSES="3")
    again, of_shown = place("bash", "-c", shown.stdout)
    assert again.returncode == 0 and len(of_shown) == 3


@pytest.mark.parametrize(
    ("name", "one"),
    [("local_cpu", "build"), ("tpu_pod", "--worker=0"), ("slurm", "--ntasks=1"),
     ("kubernetes", "completions: 1")],
)  # fmt: skip
def test_a_verb_whose_work_is_not_shared_runs_in_one_process(name, one, place):
    variables = {**PLACES[name][0], "NUM_PROCESSES": "2"}
    _, calls = place(script(name), "build", "--dataset=toys", **variables)
    assert len(calls) == 1 and one in calls[0]
    assert "JAX_NUM_PROCESSES=2" not in calls[0]


def test_the_command_on_all_hosts_of_a_slice_reads_as_it_was_typed(place):
    _, (call,) = place(script("tpu_pod"), "train", *ARGUMENTS, **PLACES["tpu_pod"][0])
    (command,) = [w for w in call.split("\0") if w.startswith("--command=")]
    assert "--worker=all" in call
    words = subprocess.run(
        ["bash", "-c", command.removeprefix("--command=").replace("exec ", r"printf '%s\0' ", 1)
         .replace("cd ", ": ", 1)],
        capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    assert words == ["launch/tpu_vm.sh", "train", *ARGUMENTS, ""]


@pytest.mark.parametrize(
    ("name", "variables", "message"),
    [
        ("tpu_pod", {}, "TPU_NAME is not set"),
        ("kubernetes", {"IMAGE": "a"}, "ACCELERATOR is not set"),
        ("kubernetes", {"IMAGE": "a", "ACCELERATOR": "cuda"}, "expected tpu, gpu or cpu"),
        ("kubernetes", {"IMAGE": "a", "ACCELERATOR": "tpu", "TOPOLOGY": "1x1"}, "set CHIPS"),
        ("local_cpu", {"NUM_PROCESSES": "two"}, "'two'; expected 1 or more"),
    ],
)
def test_a_missing_or_wrong_variable_is_one_line(name, variables, message, place):
    done, calls = place(script(name), "train", **variables)
    assert done.returncode == 2 and not calls
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_scripts_find_the_command_of_the_checkout_or_say_how_to_get_it(tmp_path):
    shutil.copytree(LAUNCH, tmp_path / "launch")
    start = [tmp_path / "launch" / "local_cpu.sh", "--dry_run"]
    plain = {"env": {"PATH": "/usr/bin:/bin"}, "capture_output": True, "text": True}
    done = subprocess.run(start, cwd=tmp_path, **plain)
    assert done.returncode == 127 and "source .venv/bin/activate" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    command = tmp_path / ".venv" / "bin" / "instructrec"
    command.parent.mkdir(parents=True)
    command.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    command.chmod(0o755)
    assert subprocess.run(start, cwd=tmp_path, **plain).stdout.split() == ["--dry_run"]


# A command that needs a moment to save when it is asked to stop, and then ends with a code.
SAVING = """#!{python}
import os, signal, sys, time, pathlib
folder, me = pathlib.Path({folder!r}), os.environ.get("JAX_PROCESS_ID", "0")
def stop(*_):
    print("saving", flush=True)
    time.sleep(0.3)
    (folder / f"saved{{me}}").touch()
    sys.exit({code})
signal.signal(signal.SIGTERM, stop)
(folder / f"running{{me}}").touch()
if os.environ.get("FAILS") == me:
    sys.exit(7)
time.sleep(60)
"""


def start_saving(tmp_path, name, code=0, **variables):
    """Starts a script over such a command."""
    program = tmp_path / "bin" / "instructrec"
    program.parent.mkdir()
    program.write_text(SAVING.format(python=sys.executable, folder=str(tmp_path), code=code))
    program.chmod(0o755)
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin", "LOG_DIR": str(tmp_path / "logs")}
    return subprocess.Popen(
        [script(name), "train"],
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(path):
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists()


@pytest.mark.parametrize(
    ("variables", "code", "expected"),
    [
        ({}, 0, 0),
        ({"EXIT_CODE_IF_STOPPED": "143"}, 0, 143),
        ({"EXIT_CODE_IF_STOPPED": "143"}, 9, 9),
        ({"NUM_PROCESSES": "2"}, 0, 0),
    ],
)
def test_sigterm_reaches_the_command_which_saves(variables, code, expected, tmp_path):
    started = start_saving(tmp_path, "local_cpu", code, **variables)
    number = int(variables.get("NUM_PROCESSES", 1))
    for process in range(number):
        wait_for(tmp_path / f"running{process}")
    started.send_signal(signal.SIGTERM)
    said, _ = started.communicate(timeout=30)
    assert started.returncode == expected and said.count("saving") == number
    for process in range(number):
        assert (tmp_path / f"saved{process}").exists()
        (log,) = (tmp_path / "logs").glob(f"train.*.{process}.log")
        assert "saving" in log.read_text()


def test_sigterm_to_all_processes_of_a_job_loses_no_line(tmp_path):
    started = start_saving(tmp_path, "gpu", EXIT_CODE_IF_STOPPED="143")
    wait_for(tmp_path / "running0")
    os.killpg(started.pid, signal.SIGTERM)
    said, _ = started.communicate(timeout=30)
    assert started.returncode == 143 and "saving" in said


def test_when_a_process_fails_the_others_are_stopped(tmp_path):
    started = start_saving(tmp_path, "local_cpu", NUM_PROCESSES="2", FAILS="1")
    started.communicate(timeout=30)
    assert started.returncode == 7 and (tmp_path / "saved0").exists()


def test_a_slurm_job_that_was_stopped_queues_itself_again(place, tmp_path):
    (tmp_path / "programs" / "srun").write_text('#!/usr/bin/env bash\nexit "$CODE"\n')
    for code, is_again in (("143", True), ("0", False), ("2", False)):
        done, calls = place(script("slurm"), "train", SLURM_JOB_ID="12", CODE=code)
        assert done.returncode == int(code)
        assert [call.split("\0")[:3] for call in calls] == [
            ["scontrol", "requeue", "12"]
        ] * is_again


def jobset(place, *words, **variables):
    """What kubernetes.sh applies, read as YAML, and the parts that matter."""
    _, (call,) = place(script("kubernetes"), *words, IMAGE="registry/a:1", **variables)
    applied = yaml.safe_load(call.split("\0")[-1])
    (hosts,) = applied["spec"]["replicatedJobs"]
    pod = hosts["template"]["spec"]["template"]["spec"]
    return applied, hosts["template"]["spec"], pod


@pytest.mark.parametrize(
    ("variables", "resource", "number", "hosts"),
    [
        ({"ACCELERATOR": "tpu", "TOPOLOGY": "4x8"}, "google.com/tpu", 4, 8),
        ({"ACCELERATOR": "tpu", "TOPOLOGY": "2x4", "CHIPS": "8"}, "google.com/tpu", 8, 1),
        ({"ACCELERATOR": "tpu", "TOPOLOGY": "2x2x4"}, "google.com/tpu", 4, 4),
        ({"ACCELERATOR": "gpu", "HOSTS": "3"}, "nvidia.com/gpu", 8, 3),
        ({"ACCELERATOR": "cpu"}, None, None, 1),
    ],
)
def test_the_jobset_is_valid_and_its_numbers_agree(place, variables, resource, number, hosts):
    applied, job, pod = jobset(place, "train", *ARGUMENTS, **variables)
    (container,) = pod["containers"]
    assert "<" not in re.sub("<NAME> &", "", str(applied)), "a value was not put in"
    assert applied["kind"] == "JobSet" and applied["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert job["parallelism"] == job["completions"] == hosts
    assert container["args"] == ["train", *ARGUMENTS]
    limits = container["resources"]["limits"]
    assert limits == ({resource: number} if resource else {})
    if topology := variables.get("TOPOLOGY"):
        chips = math.prod(map(int, topology.split("x")))
        assert chips == hosts * number
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    environment = {each["name"]: each.get("value") for each in container["env"]}
    name = applied["metadata"]["name"]
    job_name = applied["spec"]["replicatedJobs"][0]["name"]
    address, port = environment["JAX_COORDINATOR_ADDRESS"].split(":")
    assert address == f"{name}-{job_name}-0-0.{name}"
    assert int(port) in [each["containerPort"] for each in container["ports"]]
    assert environment["JAX_NUM_PROCESSES"] == str(hosts)
    volumes = {each["name"] for each in pod["volumes"]}
    assert {each["name"] for each in container["volumeMounts"]} == volumes


def test_a_pod_that_is_stopped_counts_as_failed_and_a_mistake_is_not_tried_again(place):
    applied, job, pod = jobset(place, "train", ACCELERATOR="gpu")
    (container,) = pod["containers"]
    assert {"name": "EXIT_CODE_IF_STOPPED", "value": "143"} in container["env"]
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    assert pod["terminationGracePeriodSeconds"] >= 120
    assert applied["spec"]["failurePolicy"]["maxRestarts"] > 0
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == container["name"]


def test_the_image_holds_what_the_jobset_starts(place):
    lines = [line for line in (LAUNCH / "Dockerfile").read_text().splitlines() if line[:1] != "#"]
    told = [line.split(" ", 1) for line in lines if line]
    (folder,) = [text for word, text in told if word == "WORKDIR"]
    copied = [name for word, text in told if word == "COPY" for name in text.split()[:-1]]
    for name in copied:
        assert (ROOT / name).exists()
    kept = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in kept if line.startswith("!")} == set(copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    defaults = dict(text.split("=") for word, text in told if word == "ARG")
    assert {"gpu", "tpu", "beam", defaults["EXTRA"]} <= set(project["optional-dependencies"])
    (base,) = [text for word, text in told if word == "FROM"]
    assert f">={base.split(':')[1].split('-')[0]}" == project["requires-python"]
    for accelerator in ("cpu", "gpu", "tpu"):
        _, _, pod = jobset(place, "train", ACCELERATOR=accelerator, TOPOLOGY="4x4")
        (container,) = pod["containers"]
        (command,) = container["command"]
        started = Path(command).relative_to(folder)
        assert started.parts[0] in copied and os.access(ROOT / started, os.X_OK)
        runs = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == "runs"]
        assert runs == [f"{folder}/runs"]


def test_the_batch_script_asks_for_what_the_run_needs():
    lines = script("slurm").read_text().splitlines()
    asked = dict((*shlex.split(line)[1][2:].split("=", 1), "")[:2]
                 for line in lines if line.startswith("#SBATCH"))  # fmt: skip
    assert asked["ntasks-per-node"] == "1" and "requeue" in asked
    name, seconds = asked["signal"].split("@")
    assert name == "TERM" and int(seconds) >= 120
