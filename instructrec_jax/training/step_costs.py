"""What a traced program costs: operations, and bytes of the arrays that it holds at one time.

Both are counted in a jaxpr. The compiler's own count of operations takes the body of a scan once,
however many rounds there are; here it counts for each.
"""

import collections
import math
from collections.abc import Collection, Iterator
from typing import Any

# Their results are another view of what they read, or cost nothing to make again where needed.
_VIEWS = {
    "broadcast_in_dim",
    "expand_dims",
    "iota",
    "reshape",
    "sharding_constraint",
    "squeeze",
    "transpose",
}
# They are computed element by element: a compiler joins them with what reads them.
_ELEMENTWISE = {
    "abs", "add", "add_any", "and", "ceil", "clamp", "convert_element_type", "copy", "cos", "div",
    "eq", "erf", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le",
    "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pow", "rem",
    "round", "rsqrt", "select_n", "shift_left", "shift_right_logical", "sign", "sin", "sqrt",
    "square", "stop_gradient", "sub", "tanh", "xor",
}  # fmt: skip


def num_flops(jaxpr: Any) -> int:
    """Returns the operations of all matrix products of a program: two for each multiplication.

    What is computed element by element is left out. A loop of unknown length counts as one round,
    of alternatives the longest counts.

    Args:
      jaxpr: as `jax.make_jaxpr` returns it.

    Example:
      Of a product [2, 3] @ [3, 5] they are 2 * 2 * 3 * 5 = 60, and ten times that in a scan of ten.
    """
    total = 0
    for equation in _inner(jaxpr).eqns:
        name, parts = equation.primitive.name, list(_parts(equation))
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            sizes = [equation.invars[0].aval.shape[axis] for axis in contracted]
            total += 2 * equation.outvars[0].aval.size * math.prod(sizes)
        elif name == "cond":
            total += max(map(num_flops, parts))
        else:
            times = equation.params["length"] if name == "scan" else 1
            total += times * sum(map(num_flops, parts))
    return total


def peak_bytes(jaxpr: Any, *, uncounted: Collection[Any] = ()) -> int:
    """Returns an estimate of the most bytes that a program holds beside its arguments.

    An array is held from the line that makes it to the last that reads it. What is computed element
    by element and read once is taken to be joined with its reader.

    Args:
      jaxpr: as `jax.make_jaxpr` returns it.
      uncounted: variables of its results that are counted elsewhere.
    """
    inner = _inner(jaxpr)
    last, free = _lifetimes(inner, uncounted)
    size = {
        var: 0 if var in free else _num_bytes(var) for line in inner.eqns for var in line.outvars
    }
    ends: dict[int, int] = collections.defaultdict(int)
    for var, number in size.items():
        ends[last.get(var, -1)] += number
    held = peak = 0
    for index, equation in enumerate(inner.eqns):
        own = sum(size[var] for var in equation.outvars)
        unread = sum(size[var] for var in equation.outvars if var not in last)
        within = (
            0 if _is_elementwise(equation) else max(map(peak_bytes, _parts(equation)), default=0)
        )
        is_loop = equation.primitive.name in ("scan", "while")
        peak = max(peak, held + (own + within if is_loop else max(own, within)))
        held += own - unread - ends[index]
    return peak


def largest_bytes(jaxpr: Any, last_axis: int) -> int:
    """Returns the bytes of the largest array whose last axis has a size; 0 where there is none."""
    found = 0
    for equation in _inner(jaxpr).eqns:
        for var in equation.outvars:
            if getattr(var.aval, "shape", ())[-1:] == (last_axis,):
                found = max(found, _num_bytes(var))
        found = max([found, *(largest_bytes(part, last_axis) for part in _parts(equation))])
    return found


def _lifetimes(jaxpr: Any, uncounted: Collection[Any]) -> tuple[dict[Any, int], set[Any]]:
    """Returns the last line that reads each variable, and the variables without memory."""
    uses: dict[Any, int] = collections.Counter()
    last: dict[Any, int] = {}
    for index, equation in enumerate(jaxpr.eqns):
        for var in _variables(equation.invars):
            uses[var] += 1
            last[var] = index
    for var in _variables(jaxpr.outvars):
        uses[var] += 1
        last[var] = len(jaxpr.eqns)
    free = set(uncounted)
    for equation in reversed(jaxpr.eqns):
        (out, *others), name = equation.outvars or (None,), equation.primitive.name
        is_view = name in _VIEWS
        if others or out not in last or not (is_view or _is_elementwise(equation)):
            continue
        read = list(_variables(equation.invars))
        if out in free:  # a result counted elsewhere: so is what it is another form of
            free.update(var for var in read if uses[var] == 1)
        elif is_view or uses[out] == 1:
            free.add(out)
            for var in read:
                last[var] = max(last[var], last[out])
    return last, free


def _is_elementwise(equation: Any) -> bool:
    parts = list(_parts(equation))
    if parts and equation.primitive.name not in ("scan", "while", "cond"):
        return all(_is_elementwise(line) for part in parts for line in _inner(part).eqns)
    return equation.primitive.name in _ELEMENTWISE | _VIEWS


def _num_bytes(var: Any) -> int:
    """Returns the bytes of an array; keys of random numbers and the like count as none."""
    return (
        var.aval.size * getattr(var.aval.dtype, "itemsize", 0) if hasattr(var.aval, "size") else 0
    )


def _variables(atoms: Any) -> Iterator[Any]:
    return (atom for atom in atoms if not hasattr(atom, "val"))


def _parts(equation: Any) -> Iterator[Any]:
    """Yields the programs that an operation runs."""
    for value in equation.params.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            if hasattr(item, "eqns") or hasattr(getattr(item, "jaxpr", None), "eqns"):
                yield item


def _inner(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)
