"""Several processes that run one program together, on one host or on many.

Each process holds its own devices; arrays are spread over the devices of all. `initialise` joins
them before anything looks for a device. What they tell each other here goes through the service
that starts them, not through the devices, so it waits for no computation and threads may use it.
"""

import collections
import hashlib
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.parallel.clusters import ADDRESS, INDEX, NUMBER, Place, find

logger = logging.getLogger(__name__)
START_SECONDS = "INSTRUCTREC_START_SECONDS"  # how long all processes may take to come together
_START_SECONDS = 300
_PLACES: list[Place] = []  # that of this process, once it joins others
# A process that is silent for longer is dead, and ends the others.
HEARTBEAT_SECONDS = "INSTRUCTREC_HEARTBEAT_SECONDS"
_HEARTBEAT_SECONDS = 60
_PATIENCE_SECONDS = 3600.0  # that one process may keep the others waiting
POLL_SECONDS = 0.5
_SECONDS_TO_SPEAK = 3.0  # the end of process 0 cuts the others short
_SECONDS_TO_SEE = 90.0  # network file systems keep what they have seen for a while


def initialise(
    address: str | None = None,
    number: int | None = None,
    index: int | None = None,
    *,
    is_wanted: bool = False,
) -> int:
    """Joins the processes of a run, if there are several, before anything looks at devices.

    Args:
      address: "HOST:PORT" of process 0; with `number` and `index` in place of the environment.
      number: of processes.
      index: of this one.
      is_wanted: whether it is a mistake to find no other process.

    Returns:
      The index of this process.

    Raises:
      UserError: if the environment says half of it, or nonsense; or if processes have different
        numbers of devices. Where not all processes come in time, the process ends with a message.
    """
    if is_joined():
        return _PLACES[0].index
    given = {ADDRESS: address, NUMBER: number, INDEX: index}
    place = find({name: str(value) for name, value in given.items() if value is not None})
    if place is None:
        if is_wanted:
            raise UserError(
                "--multiprocess_gpu is given, but nothing says which processes run together; give "
                "--coordinator_address=HOST:PORT, --process_count=N and --process_index=I"
            )
        return 0
    seconds = _seconds(START_SECONDS, _START_SECONDS)
    where = place.address or f"the address that JAX knows of {place.method}"
    logger.info(
        "process %d of %d waits up to %d seconds for the others, at %s",
        *(place.index, place.number, seconds, where),
    )
    _check_address(place)
    _PLACES.append(place)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    with _limited(place, seconds):
        jax.distributed.initialize(
            place.address,
            place.number,
            place.index,
            cluster_detection_method=place.method or "deactivate",
            local_device_ids=_local_devices(place),
            initialization_timeout=seconds + 60,  # its own end is a core dump
            heartbeat_timeout_seconds=_seconds(HEARTBEAT_SECONDS, _HEARTBEAT_SECONDS),
        )
    _keep_stdout_for_results()
    _check_devices()
    _meet()
    return place.index


def _seconds(name: str, default: int) -> int:
    """Returns a number of seconds that the environment may set."""
    text = os.environ.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not int(text):
        raise UserError(
            f"{name} is {text!r}; expected a whole number of seconds, such as {default}"
        )
    return int(text)


def _local_devices(place: Place) -> list[int] | None:
    """Returns which devices of the host JAX is to take: [] for all, None for what it chooses.

    In a cluster that is one GPU, by the process's number on its host, also where it is alone there.
    """
    is_all = place.method is not None and place.has_host
    return [] if is_all and "JAX_LOCAL_DEVICE_IDS" not in os.environ else None


def _check_address(place: Place) -> None:
    """Raises where process 0 cannot wait at the address, which another program has."""
    if place.index or place.address is None:
        return
    port = int(place.address.rpartition(":")[2])
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"process 0 cannot wait at {ADDRESS}={place.address}: {error.strerror}; choose "
                "another port, and see that no two processes have the index 0"
            ) from None


@contextmanager
def _limited(place: Place, seconds: int) -> Iterator[None]:
    """Ends this process with a message if the block takes longer: JAX cannot be interrupted."""

    def give_up() -> None:
        missing = f"not all of the {place.number} processes came within {seconds} seconds"
        advice = f"start one for each {INDEX} from 0 to {place.number - 1}, with the same {NUMBER}"
        if place.address and not _answers(place.address):
            missing = f"process 0 does not answer at {place.address} after {seconds} seconds"
            advice = "see that it runs there, and that nothing is between (a firewall, a proxy)"
        logger.error("instructrec: %s; %s. %s=N waits longer", missing, advice, START_SECONDS)
        leave(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"process {place.index} of {place.number} cannot join the others: "
            f"{str(error).splitlines()[0]}"
        ) from None
    finally:
        timer.cancel()


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
    except OSError:
        return False
    return True


def _keep_stdout_for_results() -> None:
    """Has what libraries print to stdout (Gloo does) go to stderr."""
    sys.stdout.flush()
    results = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(results, "w", encoding="utf-8", errors="backslashreplace")


def _check_devices() -> None:
    """Raises where processes have different numbers of devices; all of them see the same."""
    found = [0] * jax.process_count()
    for device in jax.devices():
        found[device.process_index] += 1
    if len(set(found)) > 1:
        listed = ", ".join(f"process {index} has {number}" for index, number in enumerate(found))
        raise UserError(f"processes have different numbers of devices: {listed}; expected the same")


def _meet() -> None:
    """Has Gloo connect the devices of all, and of each place, while the processes are side by side.

    It does so at the first exchange of devices, and waits for half a minute: too short where
    programs are compiled before that, and one process is slower than another.
    """
    if jax.devices()[0].platform == "cpu":
        gathered(None)
        multihost_utils.sync_global_devices("instructrec")
        everything = jax.make_mesh((jax.device_count(),), ("all",))
        whole = jax.device_put(np.zeros(jax.device_count()), NamedSharding(everything, P("all")))
        jax.block_until_ready(jax.jit(jnp.sum, out_shardings=NamedSharding(everything, P()))(whole))


def is_joined() -> bool:
    """Whether this process has joined others, or is about to."""
    return bool(_PLACES)


def leave(code: int) -> None:
    """Ends this process of several without waiting for the others, as Python's own end would."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _PLACES and not _PLACES[0].index:
        time.sleep(_SECONDS_TO_SPEAK)
    os._exit(code)


@contextmanager
def together() -> Iterator[None]:
    """Turns the end of another process, which a computation of all finds out, into one message.

    Raises:
      UserError: if a collective or the service of all processes fails.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise UserError(
            "another process of this run has ended, or cannot be reached "
            f"({str(error).splitlines()[0][:200]}); its own messages say why. The same command "
            "goes on from what was saved"
        ) from None


def is_main() -> bool:
    """Whether this is process 0, which writes and speaks for all."""
    return jax.process_index() == 0


_OPENED: collections.Counter[str] = collections.Counter()


class Channel:
    """Exchanges that all processes make in the same order; a thread needs a channel of its own.

    Attributes:
      name: begins the names of what is exchanged; channels are opened in the same order too.
    """

    def __init__(self, name: str, is_over: threading.Event | None = None) -> None:
        """Names the channel.

        Args:
          name: the same in all processes.
          is_over: ends the waiting for others, by `InterruptedError`.
        """
        self.name = f"instructrec/{name}/{_OPENED[name]}"
        _OPENED[name] += 1
        self._is_over, self._number = is_over, 0

    def gathered(self, value: Any) -> list[Any]:
        """Returns what each process gave, by its index.

        Args:
          value: of this process; what JSON can hold.

        Raises:
          UserError: if a process does not come within an hour.
        """
        number, self._number = self._number, self._number + 1
        if jax.process_count() == 1:
            return [value]
        service, folder = client(), f"{self.name}/{number}"
        if not is_main():
            service.key_value_set(f"{folder}/{jax.process_index()}", json.dumps(value))
            return json.loads(self._get(f"{folder}/all"))
        keys = [f"{folder}/{index}" for index in range(1, jax.process_count())]
        values = [value, *(json.loads(self._get(key)) for key in keys)]
        service.key_value_set(f"{folder}/all", json.dumps(values))
        # Who came to this exchange has read the one before.
        service.key_value_delete(f"{self.name}/{number - 1}")
        return values

    def _get(self, key: str) -> str:
        """Returns the value of a key as soon as there is one."""
        began = time.monotonic()
        while time.monotonic() - began < _PATIENCE_SECONDS:
            if self._is_over is not None and self._is_over.is_set():
                raise InterruptedError
            try:
                return client().blocking_key_value_get(key, int(POLL_SECONDS * 1000))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
        raise UserError(f"waited {_PATIENCE_SECONDS:.0f} seconds for another process ({key})")


_MAIN = Channel("main")


def gathered(value: Any) -> list[Any]:
    """Returns what each process gave, by its index; all main threads call it in the same order."""
    return _MAIN.gathered(value)


def on_main(work: Callable[[], Any]) -> Any:
    """Returns, in all processes, what process 0 makes; nothing else happens in the others.

    Args:
      work: makes what JSON can hold; its UserError is raised in all processes.
    """
    result, problem = None, None
    if is_main():
        try:
            result = work()
        except UserError as error:
            problem = str(error)
    result, problem = gathered([result, problem])[0]
    if problem is not None:
        raise UserError(problem)
    return result


@contextmanager
def sharing_errors() -> Iterator[None]:
    """Has a UserError of one process inside the block be raised in all.

    Nothing may be exchanged inside. A process that fails anywhere else ends the others too, though
    with a message that knows no reason.
    """
    own: UserError | None = None
    try:
        yield
    except UserError as error:
        own = error
    problems = gathered(None if own is None else str(own))
    if own is not None:
        raise own
    for index, problem in enumerate(problems):
        if problem is not None:
            raise UserError(f"process {index} cannot begin: {problem}")


def check_seen(path: Path) -> None:
    """Raises, in all processes, where one does not see a file that process 0 has written."""
    wanted = gathered(files.sha256(path) if is_main() else None)[0]
    began = time.monotonic()
    while not (is_seen := path.is_file() and files.sha256(path) == wanted):
        if time.monotonic() - began > _SECONDS_TO_SEE:
            break
        time.sleep(POLL_SECONDS)
    if blind := [index for index, seen in enumerate(gathered(is_seen)) if not seen]:
        raise UserError(
            f"process {blind[0]} does not see {path} as process 0 has written it; all processes "
            "need the same folder, on a file system that all hosts share"
        )


def check_alike(values: Mapping[str, Any]) -> None:
    """Raises, in all processes, where one of them has other values than process 0.

    Args:
      values: JSON values by name.

    Raises:
      UserError: naming the first difference.
    """
    text = json.dumps(dict(values), sort_keys=True)
    if len(set(gathered(hashlib.sha256(text.encode()).hexdigest()))) == 1:
        return
    first, *others = gathered(json.loads(text))
    for index, other in enumerate(others, start=1):
        for name in [*first, *other]:
            if other.get(name) != first.get(name):
                raise UserError(
                    f"process {index} differs from process 0 in {name}: {other.get(name)!r} there, "
                    f"{first.get(name)!r} here; start all of them with the same command, code and "
                    "data"
                )


def client() -> Any:
    """Returns what processes reach each other by: a store of keys and values."""
    from jax._src import distributed  # JAX has no public name for it; Orbax uses it too

    return distributed.global_state.client
