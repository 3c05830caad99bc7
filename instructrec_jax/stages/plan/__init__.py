"""The stage `plan`: whether a training run fits a target, how long it takes and what it costs."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.parallel import topologies
from instructrec_jax.stages.plan.compiling import Figures
from instructrec_jax.stages.plan.estimate import StepEstimate, estimate_step
from instructrec_jax.stages.run_data import RunData
from instructrec_jax.stages.train.start import Learning, TrainSettings, check_batch
from instructrec_jax.training.loop import Periods

PRESETS = Path(__file__).with_name("presets.json")
FITS, TOO_LARGE, UNKNOWN = "fits", "does not fit", "not known"
ESTIMATE, COMPILER = "an estimate (leave room for half as much again)", "the compiler's count"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known of a run before it starts.

    Attributes:
      target: the devices.
      mesh: devices of each mesh axis.
      batch_size: rows of a step.
      step: sizes of the training step, estimated.
      programs: what the compiler says of each program; empty where nothing was compiled.
      num_steps: of the run; None where the config leaves it open.
      utilisation: share of the peak that the run is assumed to reach.
      presets: gin files known to fit a model of this size on the same kind of devices.
    """

    target: topologies.Target
    mesh: Mapping[str, int]
    batch_size: int
    step: StepEstimate
    programs: Mapping[str, Figures]
    num_steps: int | None
    utilisation: float
    presets: Sequence[str]

    @property
    def seconds_per_step(self) -> float:
        """Time of a step's matrix products at the assumed utilisation."""
        peak = self.target.device.teraflops * 1e12 * self.target.num_devices
        return self.step.flops / (peak * self.utilisation)

    @property
    def hours(self) -> float | None:
        """Time of the run."""
        return None if self.num_steps is None else self.num_steps * self.seconds_per_step / 3600

    @property
    def usd(self) -> float | None:
        """Price of the run."""
        each = self.target.num_devices * self.target.device.usd_per_hour
        return None if self.hours is None else self.hours * each

    @property
    def peak_bytes(self) -> int:
        """Most bytes of a device: the compiler's count of the largest program, else an estimate."""
        counted = [figures["peak_bytes"] for figures in self.programs.values()]
        return max(counted, default=self.step.peak)

    @property
    def source(self) -> str:
        """Where `peak_bytes` is from."""
        return COMPILER if self.programs else ESTIMATE

    @property
    def verdict(self) -> str:
        """Whether the run fits."""
        memory = self.target.memory_bytes
        if memory is None:
            return UNKNOWN
        refused = any("refused" in figures for figures in self.programs.values())
        return TOO_LARGE if refused or self.peak_bytes > memory else FITS

    def as_json(self) -> str:
        """Returns all of it; sizes in bytes of one device, the checkpoint's in all."""
        found = {
            "target": dataclasses.asdict(self.target),
            "mesh": dict(self.mesh),
            "batch_size": self.batch_size,
            "estimate": dataclasses.asdict(self.step) | {"peak": self.step.peak},
            "compiled": dict(self.programs),
            "steps": self.num_steps,
            "tokens": None if self.num_steps is None else self.num_steps * self.step.tokens,
            "seconds_per_step": self.seconds_per_step,
            "hours": self.hours,
            "usd": self.usd,
            "assumed_utilisation": self.utilisation,
            "peak_bytes": self.peak_bytes,
            "source": self.source,
            "verdict": self.verdict,
            "presets": list(self.presets),
        }
        return json.dumps(found, indent=2) + "\n"

    def as_text(self) -> str:
        """Returns a table, whose last line is the verdict."""
        rows = [*self._sizes(), *self._time(), *self._compiled(), ("verdict", self._conclusion())]
        return "\n".join(f"{name:<14}{text}" for name, text in rows)

    def _sizes(self) -> list[tuple[str, str]]:
        step, device, number = self.step, self.target.device, self.target.num_devices
        memory = "unknown memory" if device.memory_gib is None else f"{device.memory_gib:.2f} GiB"
        axes = ", ".join(f"{name}={size}" for name, size in self.mesh.items())
        return [
            ("target", f"{self.target.name}: {number} devices of {memory}, mesh {axes}"),
            ("parameters", f"{step.num_parameters:,}"),
            ("per device", f"{_gib(step.peak)} by an estimate, of which"),
            ("", f"{_gib(step.parameters)} parameters"),
            ("", f"{_gib(step.optimizer_state)} state of the optimizer"),
            ("", f"{_gib(step.gradients)} gradients"),
            ("", f"{_gib(step.activations)} activations and temporaries"),
            ("", f"(the logits once: {_gib(step.logits)})"),
            ("checkpoint", f"{_gib(step.checkpoint)}, {_gib(step.checkpoint / number)} a device"),
            ("step", f"{step.flops:.3g} FLOPs of matrix products, {step.tokens:,} token places"),
        ]

    def _time(self) -> list[tuple[str, str]]:
        device = self.target.device
        assumed = (
            f"assumed: {self.utilisation:.0%} of {device.teraflops:g} TFLOP/s a device, "
            f"{device.usd_per_hour:g} USD a device and hour (table of {self.target.as_of}, not "
            "checked since; --prices)"
        )
        if self.num_steps is None:
            text = f"{self.seconds_per_step:.2f} s a step; TRAIN_STEPS_RELATIVE is not set"
        else:
            places = self.num_steps * self.step.tokens
            text = (
                f"{self.num_steps:,} steps, {places:,} token places, {self.hours:,.1f} hours, "
                f"{self.usd:,.0f} USD"
            )
        return [("run", text), ("", assumed)]

    def _compiled(self) -> list[tuple[str, str]]:
        if not self.programs:
            return [("compiler", "not asked: all sizes are estimates")]
        rows = []
        for name, figures in self.programs.items():
            if "refused" in figures:
                rows.append((name, f"refused by the compiler: {figures['refused']}"))
                continue
            sent = ", ".join(
                f"{of['held']:,} {kind} ({of['runs']:,} runs a step, {_gib(of['bytes'])})"
                for kind, of in sorted(figures["collectives"].items())
            )
            text = f"{_gib(figures['peak_bytes'])} a device, compiled in {figures['seconds']:.0f} s"
            rows += [(name, text), ("", f"its program holds {sent or 'no collectives'}")]
        return [*rows, ("", "(bytes of a device; a loop of unknown length counts as one round)")]

    def _conclusion(self) -> str:
        size = f"{_gib(self.peak_bytes)}, by {self.source}"
        if self.verdict == UNKNOWN:
            return f"{UNKNOWN}: {size}; give the memory of a device, such as cpu:8x4GB"
        text = f"{self.verdict}: {size}, of {self.target.device.memory_gib:.2f} GiB"
        if self.verdict == FITS:
            return text
        if not self.presets:
            return f"{text}; more devices, a smaller BATCH_SIZE or more NUM_MICROBATCHES take less"
        return "\n".join([f"{text}; these presets would:", *(f"  {name}" for name in self.presets)])


def plan(
    learning: Learning,
    data: RunData,
    run: TrainSettings,
    periods: Periods,
    *,
    target: topologies.Target,
    programs: Mapping[str, Figures],
    utilisation: float = 0.4,
) -> Plan:
    """Returns what is known of a run before it starts; nothing is read and no device touched.

    Args:
      learning: of the run.
      data: of the run; of it the lengths alone are read.
      run: of the run.
      periods: of the run.
      target: the devices.
      programs: what `compiling.compile_part` returned; empty for an estimate.
      utilisation: share of the peak that the run is assumed to reach.

    Raises:
      UserError: if the mesh fits neither the target, nor the model, nor the batch.
    """
    if not 0 < utilisation <= 1:
        raise UserError(f"--utilisation is {utilisation}; expected a share above 0, up to 1")
    mesh = topologies.abstract_mesh(learning.mesh, target)
    check_batch(run, mesh, data.feature_lengths)
    return Plan(
        target=target,
        mesh=dict(mesh.shape),
        batch_size=run.batch_size,
        step=estimate_step(learning, data, run, mesh),
        programs=programs,
        num_steps=run.train_steps_relative or periods.train_steps,
        utilisation=utilisation,
        presets=known_presets(learning, target),
    )


def known_presets(learning: Learning, target: topologies.Target) -> list[str]:
    """Returns lines on the presets for a model of this size on devices of this kind."""
    found = []
    for preset in files.parse_json(PRESETS.read_text(encoding="utf-8"))["presets"]:
        sizes = {name: getattr(learning.model, name) for name in ("emb_dim", "mlp_dim")}
        is_same = preset["sizes"] == sizes and preset["topology"].startswith(f"{target.kind}:")
        if is_same:
            found.append(
                f"--gin_file={preset['file']} --topology={preset['topology']} "
                f"({preset['peak_gib']} GiB a device, {preset['source']})"
            )
    return found


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"
