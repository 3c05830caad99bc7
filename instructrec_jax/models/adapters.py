"""Which parameters learn: all, all but some, or low-rank adapters on kernels that stay as they are.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022). A kernel W
[in, out] acts as W + (alpha / rank) A B, A [in, rank], B [rank, out]. The two are applied one after
the other, so that the gradient of W is never computed. B begins as zeros: an adapted model starts
as its base, bit for bit.

Parameters go by their dotted names in the model, `encoder.layers.attention.query.kernel`, which
mean all layers of a stack.
"""

import dataclasses
import difflib
import functools
import math
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from instructrec_jax.errors import UserError
from instructrec_jax.models.t5 import Kernel, einsum
from instructrec_jax.settings import Names, Positive, Range, check_fields

LORA_A, LORA_B = "adapter.lora_a", "adapter.lora_b"
ATTENTION = ("attention.(query|value)",)
Model = TypeVar("Model", bound=nnx.Module)


Rank = Annotated[int, Range(1, 2**16)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Adapters and where they go.

    Attributes:
      rank: columns of A and rows of B.
      alpha: their product counts alpha / rank.
      targets: regular expressions; kernels whose name one of them is found in get an adapter. The
        default, queries and values of all attention, is the choice of the source (section 7.1).
    """

    rank: Rank = 8
    alpha: Positive = 16.0
    targets: Names = ATTENTION

    def __post_init__(self) -> None:
        _take_one_for_a_list(self, "targets")
        check_fields(self)
        _check_patterns("LORA_TARGETS", self.targets)

    @property
    def scale(self) -> float:
        """What the product of A and B counts."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuning:
    """What learns; by default everything.

    What does not learn has no optimizer state, no gradient, and no say in gradient norms.

    Attributes:
      lora: adapters, which then are all that learns.
      frozen: regular expressions; parameters whose name one of them is found in stay as they are.
    """

    lora: Lora | None = None
    frozen: Sequence[str] = ()

    def __post_init__(self) -> None:
        _take_one_for_a_list(self, "frozen")
        check_fields(self)
        _check_patterns("FROZEN", self.frozen)
        if self.lora is not None and self.frozen:
            raise UserError(
                f"FROZEN is {list(self.frozen)} beside LoRA, with which everything but the "
                "adapters is frozen; leave it out, or let LORA_TARGETS match fewer kernels"
            )

    def trained(self, names: Collection[str]) -> set[str]:
        """Returns which of a model's parameters learn.

        Args:
          names: of all parameters, adapters included.

        Raises:
          UserError: if a pattern matches none, or nothing is left that learns.
        """
        if self.lora is not None:
            return {name for name in names if name.endswith((LORA_A, LORA_B))}
        left = set(names) - _matched(self.frozen, names, "FROZEN: pattern of parameters")
        if not left:
            raise UserError(
                f"FROZEN is {list(self.frozen)}, which matches every parameter; nothing is left "
                "to train, let it match fewer"
            )
        return left


class LowRank(nnx.Module):
    """The low-rank part of a kernel, or of a stack of them."""

    def __init__(self, kernel: Kernel, lora: Lora, key: Array) -> None:
        shape = tuple(kernel.kernel.shape)
        axes = tuple(kernel.kernel.get_metadata()["logical_axes"])
        first = len(shape) - len(axes)  # 1 where axis 0 runs over layers
        split = first + kernel.num_contracted
        bound = math.prod(shape[first:split]) ** -0.5
        drawn = jax.random.uniform(
            key, (*shape[:split], lora.rank), jnp.float32, minval=-bound, maxval=bound
        )
        zeros = jnp.zeros((*shape[:first], lora.rank, *shape[split:]), jnp.float32)
        num = kernel.num_contracted
        self.lora_a = nnx.Param(drawn, logical_axes=(*axes[:num], "lora_rank"))
        self.lora_b = nnx.Param(zeros, logical_axes=("lora_rank", *axes[num:]))
        self.scale = lora.scale

    def __call__(self, rows: Array) -> Array:
        """Maps [rows, in] to what is added to the kernel's [rows, out], in the dtype of `rows`."""
        a, b = self._matrices()
        narrow = einsum("XI,IR->XR", rows, a.astype(rows.dtype))
        return einsum("XR,RO->XO", narrow, b.astype(rows.dtype)) * self.scale

    def columns(self, indices: Array) -> Array:
        """Returns what is added to columns of the kernel, float32 [*indices.shape, in]."""
        a, b = self._matrices()
        return einsum("...R,IR->...I", b.T[indices], a) * self.scale

    def _matrices(self) -> tuple[Array, Array]:
        """Returns A [in, rank] and B [rank, out] of one layer."""
        a, b = self.lora_a[...], self.lora_b[...]
        return a.reshape(-1, a.shape[-1]), b.reshape(b.shape[0], -1)


def parameters_by_name(model: nnx.Module) -> dict[str, nnx.Param]:
    """Returns the parameters of a model, or of its shapes, by dotted name."""
    leaves = jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_param)
    return {_name(path): param for path, param in leaves}


def with_adapters(model: Model, fine_tuning: FineTuning, *, seed: int) -> Model:
    """Returns the model with the adapters that fine-tuning asks for, else as it is.

    Raises:
      UserError: if a pattern of LORA_TARGETS matches no kernel.
    """
    lora = fine_tuning.lora
    if lora is None:
        return model
    adapted = jax.tree.map(lambda leaf: leaf, model)  # modules of its own, the same arrays
    modules = {
        name: functools.reduce(getattr, name.split(".")[:-1], adapted)
        for name in parameters_by_name(model)
    }
    kernels = {name: module for name, module in modules.items() if isinstance(module, Kernel)}
    for name in sorted(_matched(lora.targets, kernels, "LORA_TARGETS: pattern of kernels")):
        # A key of its own: a kernel's start does not depend on which others have adapters.
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        kernels[name].adapter = LowRank(kernels[name], lora, key)
    return adapted


def split(model: Model, fine_tuning: FineTuning) -> tuple[Model, Model]:
    """Returns (what learns, what stays), each the model with None in place of the other's.

    Raises:
      UserError: as `FineTuning.trained` does.
    """
    names = fine_tuning.trained(parameters_by_name(model))

    def pick(is_trained: bool) -> Model:
        keep = lambda path, param: param if (_name(path) in names) == is_trained else None  # noqa: E731
        return jax.tree_util.tree_map_with_path(keep, model, is_leaf=_is_param)

    return pick(True), pick(False)


def join(trained: Model, rest: Model) -> Model:
    """Puts together what `split` took apart."""
    return jax.tree.map(
        lambda one, other: other if one is None else one,
        trained,
        rest,
        is_leaf=lambda leaf: leaf is None or _is_param(leaf),
    )


def _is_param(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Param)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _take_one_for_a_list(settings: Any, name: str) -> None:
    """Makes a tuple of a field's list; a single text may come alone."""
    value = getattr(settings, name)
    value = (value,) if isinstance(value, str) else value
    object.__setattr__(settings, name, tuple(value) if isinstance(value, list) else value)


def _check_patterns(macro: str, patterns: Sequence[str]) -> None:
    """Raises UserError for the first that is no regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"{macro}: {pattern!r} is no regular expression ({error}); expected one such as "
                f"{ATTENTION[0]!r}"
            ) from None


def _matched(patterns: Sequence[str], names: Collection[str] | Mapping[str, Any], kind: str) -> set:
    """Returns the names that a pattern is found in; each pattern must be found in one."""
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if re.search(pattern, name)}
        if not hits:
            near = sorted(names, key=lambda name: (-_likeness(pattern, name), name))[:5]
            raise UserError(
                f"{kind} {pattern!r} is found in no name; the nearest: {', '.join(near)}"
            )
        found |= hits
    return found


def _likeness(pattern: str, name: str) -> float:
    """Returns how near a pattern comes to any run of a name's parts, up to 1."""
    parts = name.split(".")
    runs = {
        ".".join(parts[start:stop])
        for start in range(len(parts))
        for stop in range(start + 1, len(parts) + 1)
    }
    return max(difflib.SequenceMatcher(None, pattern, run).ratio() for run in runs)


EVERYTHING = FineTuning()
