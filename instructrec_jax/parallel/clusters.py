"""Which processes run one program together, as three variables or a cluster say."""

import dataclasses
import os
from collections.abc import Mapping

from instructrec_jax.errors import UserError

ADDRESS, NUMBER, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
ALONE = f"set {NUMBER}=1 to run alone"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """One process among those that run together.

    Attributes:
      index: of this process.
      number: of processes.
      address: "HOST:PORT" where process 0 waits for the others; None: JAX finds it.
      method: how JAX finds it, such as "slurm".
      has_host: whether no other process of the run is on its host, so that all devices are its own.
    """

    index: int
    number: int
    address: str | None = None
    method: str | None = None
    has_host: bool = True


def find(given: Mapping[str, str]) -> Place | None:
    """Returns the place of this process among those that run together, None if it runs alone.

    Args:
      given: values by the names of the environment's variables, which they take the place of.

    Raises:
      UserError: if the variables say half of it, or nonsense, or a cluster cannot be understood.
    """
    names = (ADDRESS, NUMBER, INDEX)
    said = given or {name: os.environ[name] for name in names if os.environ.get(name)}
    if said.get(NUMBER) == "1":
        return None
    if not said:
        return _find_cluster()
    if missing := [name for name in names if name not in said]:
        raise UserError(
            f"{', '.join(said)} is set, but not {', '.join(missing)}; several processes need "
            f"{ADDRESS}=HOST:PORT of process 0, {NUMBER}, and {INDEX} from 0 on; {ALONE}"
        )
    host, _, port = said[ADDRESS].rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"{ADDRESS} is {said[ADDRESS]!r}; expected HOST:PORT, such as node1:8476")
    number, index = (_whole(name, said[name]) for name in (NUMBER, INDEX))
    if not 0 <= index < number:
        raise UserError(
            f"{INDEX} is {index} and {NUMBER} is {number}; expected an index from 0 to "
            f"{max(number - 1, 0)}, each given to one process"
        )
    return Place(index=index, number=number, address=said[ADDRESS])


def _whole(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise UserError(f"{name} is {text!r}; expected a whole number")
    return int(text)


def _find_cluster() -> Place | None:
    """Returns the place that SLURM, a TPU pod or another cluster gives this process."""
    from jax._src.clusters import ClusterEnv  # JAX tells no other way how many there are

    # A pod of Kubernetes is one of several only if its job counts them.
    is_plain_pod = "JOB_COMPLETION_INDEX" not in os.environ
    try:
        for cluster in ClusterEnv._cluster_types:
            if cluster.opt_in_only_method or (cluster.name == "k8s" and is_plain_pod):
                continue
            if cluster.is_env_present() and (number := cluster.get_process_count()) > 1:
                return Place(
                    index=cluster.get_process_id(),
                    number=number,
                    method=cluster.name,
                    has_host=_is_one_per_host(),
                )
    except Exception as error:
        raise UserError(
            f"JAX finds a cluster here and cannot tell which process of it this is ({error}); set "
            f"{ADDRESS}, {NUMBER} and {INDEX}, or {ALONE}"
        ) from None
    return None


def _is_one_per_host() -> bool:
    """Whether SLURM or Open MPI started one process on each host; else each gets one GPU."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")  # such as "1(x4)" or "2,1"
    sizes = {part.split("(")[0] for part in tasks.split(",")}
    return sizes == {"1"} or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
