"""What the compiler itself says of a run's training step and scoring steps, on a target."""

import logging
import math
import re
import time
from typing import Any

import jax
import numpy as np

from instructrec_jax.parallel import compiled, topologies
from instructrec_jax.parallel.mesh import LogicalMesh, abstract_model, make_mesh
from instructrec_jax.parallel.placement import bytes_per_device, num_batch_shares
from instructrec_jax.scoring.prefix_trees import TokenRequest
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.stages.plan.estimate import batch_shapes
from instructrec_jax.stages.run_data import RunData
from instructrec_jax.stages.train.start import Learning, TrainSettings, step_optimizer
from instructrec_jax.training.step import HARDWARE_RNG, SOFTWARE_RNG, lower_train_step

logger = logging.getLogger(__name__)
TRAIN, SCORE = "train", "score"
PARTS = (TRAIN, SCORE)
_SCORE_TOKENS = 2048  # of instructions in a step of each group of devices: `score`'s STEP_TOKENS
_NEEDED = re.compile(
    r"(?:Used |\()([\d.]+)([KMGT])(?: of [\d.]+[KMGT] hbm|\) exceeds available HBM)"
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
Figures = dict[str, Any]


def compile_part(
    part: str,
    learning: Learning,
    data: RunData,
    run: TrainSettings,
    *,
    target: topologies.Target,
) -> dict[str, Figures]:
    """Compiles the programs of a part of the work; no parameter is made and no device touched.

    Args:
      part: "train", the step of the run, or "score", the steps that score candidates.
      learning: of the run.
      data: of the run; of it the lengths alone are read.
      run: of the run.
      target: what to compile for; the process runs under `topologies.compiler_environment`.

    Returns:
      By program: "peak_bytes" of a device while it runs, with the parts of the model that it leaves
      alone; "arguments", "outputs", "temporaries" and "shared" (by arguments and outputs), bytes;
      "collectives", by kind as `compiled.totals` gives them; "seconds" of compiling.
      Of a program that the compiler refuses for its size "peak_bytes" and "refused", its message.

    Raises:
      UserError: if there is no such target, or the mesh does not fit it.
    """
    mesh = make_mesh(learning.mesh, topologies.described_devices(target))
    if part == TRAIN:
        return {
            "train step": compiled_figures("train step", _train_step(learning, data, run, mesh))
        }
    return _scoring_steps(learning, data, run, mesh)


def _train_step(learning: Learning, data: RunData, run: TrainSettings, mesh: LogicalMesh) -> Any:
    return lower_train_step(
        learning.model.init,
        learning.objective,
        step_optimizer(learning, run),
        mesh=mesh,
        batch=batch_shapes(learning, data, run),
        fine_tuning=learning.fine_tuning,
        num_microbatches=run.num_microbatches or 1,
        rng=HARDWARE_RNG if run.use_hardware_rng else SOFTWARE_RNG,
    )


def _scoring_steps(
    learning: Learning, data: RunData, run: TrainSettings, mesh: LogicalMesh
) -> dict[str, Figures]:
    """Returns the figures of the steps for instructions and candidates of the most tokens."""
    inputs, targets = (data.feature_lengths[name] for name in ("inputs", "targets"))
    candidates = [
        np.asarray([2 + index] * (targets - 1) + [1]) for index in range(run.num_candidates)
    ]
    request = TokenRequest(
        request_id="planned", instruction=np.ones(inputs, np.int32), candidates=candidates
    )
    number = 2 * math.ceil(_SCORE_TOKENS / inputs) * num_batch_shares(mesh)
    model = abstract_model(learning.model.init, mesh)
    programs = Scorer(mesh).lower(model, [request] * number)
    found = {f"{name[:-1]}ing step": compiled_figures(name, one) for name, one in programs.items()}
    # Each step is given the part of the model that it uses; the rest is there all the same, and so
    # is the memory of instructions, which encoding returns.
    resident = bytes_per_device(model) + found["encoding step"].get("outputs", 0)
    for figures in found.values():
        if "refused" not in figures:
            figures["peak_bytes"] = resident + figures["temporaries"]
    return found


def compiled_figures(name: str, lowered: Any) -> Figures:
    """Returns the figures of one program, as `compile_part` gives them.

    Args:
      name: of the program, for the log.
      lowered: what `jax.jit(...).lower` returns.
    """
    begin = time.monotonic()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (needed := _NEEDED.search(str(error))) is None:
            raise
        size = float(needed[1]) * _UNITS[needed[2]]
        return {"peak_bytes": int(size), "refused": needed[0]}
    seconds = time.monotonic() - begin
    logger.info("compiled the %s in %.0f s", name, seconds)
    memory = program.memory_analysis()
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
    temporaries, shared = memory.temp_size_in_bytes, memory.alias_size_in_bytes
    return {
        "peak_bytes": arguments + outputs + temporaries - shared,
        "arguments": arguments,
        "outputs": outputs,
        "temporaries": temporaries,
        "shared": shared,
        "collectives": compiled.totals(compiled.collectives(program.as_text())),
        "seconds": round(seconds, 1),
    }
