"""Runs a stage's function with arguments from gin files and the command line.

Python stays free of gin decorators: gin files start with `from __gin__ import
dynamic_registration`, import the modules they configure, and bind the arguments of their
functions. Each macro has one owner file, so that the order of files never decides a result.
Mistakes that gin lets pass are found before it runs, all at once and with their places.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gin

from instructrec_jax.cli import gin_files, t5x_lines
from instructrec_jax.cli.gin_files import COMMAND_LINE, GinText, Statement
from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.settings import SettingError


def run_with_gin(
    function: Callable[..., Any],
    *,
    gin_file_names: Sequence[str],
    bindings: Sequence[str] = (),
    search_paths: Sequence[str] = (),
    dry_run: bool = False,
    is_part: bool = False,
) -> Any:
    """Calls a function with every argument bound by gin.

    A function that has a parameter `config_text` gets the resolved config, to write it down.

    Args:
      function: function of a stage; gin files bind it by its module and name.
      gin_file_names: gin files; their order does not matter, but for overlays.
      bindings: "NAME=value" of the command line, which override all files.
      search_paths: folders in which gin files are looked for first.
      dry_run: let a function with that parameter stop early.
      is_part: the function is a part of the run that the files configure; what the other parts
        require need not be there.

    Returns:
      What the function returns; None after a dry run of a function that has no such parameter.

    Raises:
      UserError: for a mistake in gin files or bindings, and as the function itself raises.
    """
    texts = gin_files.read_files(gin_file_names, search_paths)
    texts += gin_files.read_bindings(bindings, texts)
    configured = configure(function, texts, is_part=is_part)
    parameters = inspect.signature(function).parameters
    given: dict[str, Any] = {}
    if "config_text" in parameters:
        given["config_text"] = resolved_config()
    if dry_run:
        if "dry_run" not in parameters:
            return None
        given["dry_run"] = True
    _check_arguments(function, given)
    return _call(configured, given, _statements(texts))


def arguments_with_gin(
    function: Callable[..., Any],
    *,
    gin_file_names: Sequence[str],
    bindings: Sequence[str] = (),
    search_paths: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns the arguments that gin binds of a function, which is not called.

    Args:
      function: as for `run_with_gin`.
      gin_file_names: as for `run_with_gin`.
      bindings: as for `run_with_gin`.
      search_paths: as for `run_with_gin`.

    Raises:
      UserError: for a mistake in gin files or bindings, and as the classes they configure raise.
    """
    texts = gin_files.read_files(gin_file_names, search_paths)
    texts += gin_files.read_bindings(bindings, texts)
    configured = configure(function, texts)
    _check_arguments(function, {})
    return _call(lambda: gin.get_bindings(configured), {}, _statements(texts))


def run_with_macros(
    function: Callable[..., Any], gin_file_names: Sequence[str], **macros: Any
) -> Any:
    """Calls a function configured by gin files and by macros given as Python values.

    Args:
      function: function of a stage.
      gin_file_names: gin files.
      **macros: values that override all files: numbers, strings, lists and the like; a string that
        begins with @ is a reference.
    """
    is_reference = {k: isinstance(v, str) and v.startswith("@") for k, v in macros.items()}
    return run_with_gin(
        function,
        gin_file_names=gin_file_names,
        bindings=[f"{k}={v if is_reference[k] else repr(v)}" for k, v in macros.items()],
    )


def resolved_config() -> str:
    """Returns the config that gin holds now, as text that gin can read again."""
    return gin.config_str(max_line_length=100)


def macro_value(name: str) -> str:
    """Returns the value of a macro as text, "" where it has none."""
    try:
        return str(gin.query_parameter(f"{name}/gin.macro.value"))
    except ValueError:
        return ""


def bound_value(name: str) -> Any:
    """Returns what the parsed gin files bind an argument to, a macro's value in its place.

    Args:
      name: of the argument, such as "train.TrainSettings.seed".

    Returns:
      The value; None where nothing binds it.
    """
    try:
        value = gin.query_parameter(name)
    except ValueError:
        return None
    if isinstance(value, gin.config.ConfigurableReference):
        return gin.query_parameter(
            f"{value.scoped_selector.removesuffix('/gin.macro')}/gin.macro.value"
        )
    return value


def configure(
    function: Callable[..., Any], texts: Sequence[GinText], *, is_part: bool = False
) -> Callable[..., Any]:
    """Lets gin bind everything, and returns the function that takes its arguments from it.

    Args:
      function: as for `run_with_gin`.
      texts: gin files and bindings of the command line; later ones win.
      is_part: as for `run_with_gin`.

    Raises:
      UserError: for a mistake in them.
    """
    _check_for_t5x(texts)
    statements = _statements(texts)
    _check(statements, f"{function.__module__}.{function.__qualname__}", is_part=is_part)
    given = {statement.key for statement in statements if not statement.is_required}
    gin.clear_config()
    try:
        for text in texts:
            # A line that only requires a macro must not unset what an earlier file gave.
            is_met = [s for s in text.statements if s.is_required and s.key in given]
            gin.parse_config(text.stream(without=is_met))
        if not is_part:
            gin.finalize()
    except (ValueError, NameError, AttributeError, ImportError, TypeError, RuntimeError) as error:
        raise UserError(f"gin cannot use this config: {error}") from None
    try:
        return gin.get_configurable(function)
    except KeyError:  # no gin file mentions the function
        return function


def _statements(texts: Iterable[GinText]) -> list[Statement]:
    return [statement for text in texts for statement in text.statements]


def _check(statements: Sequence[Statement], function_name: str, *, is_part: bool) -> None:
    """Raises one error for what gin would let pass or report one at a time.

    A file may say more than one kind of run uses: what any shipped file uses is no mistake there.
    On the command line it is.
    """
    shipped = _statements(gin_files.read_files(gin_files.shipped_files()))
    _check_owners(statements)
    _check_used(statements, shipped)
    if is_part:
        own = [s for s in statements if s.key.startswith(f"{function_name}.")]
        needed = {name for statement in own for name in statement.macros}
        _check_defined([s for s in statements if s.key in needed or s in own], statements)
        return
    _check_defined(statements, statements)
    called = {name for statement in [*statements, *shipped] for name in statement.references}
    called.add(function_name)
    for statement in statements:
        configurable = statement.key.rpartition(".")[0]
        if not statement.is_macro and not any(
            f".{name}".endswith(f".{configurable}") for name in called
        ):
            raise UserError(
                f"{statement.place} binds {statement.key}, but this run of {function_name} never "
                "uses that configurable; remove the line or the file"
            )


def _check_for_t5x(texts: Iterable[GinText]) -> None:
    """Raises where a file is written for T5X, with what each of its lines is here."""
    for text in texts:
        modules = {item.module for item in text.imports.values()}
        theirs = sorted(module for module in modules if t5x_lines.is_theirs(module))
        if text.source == COMMAND_LINE or not theirs:
            continue
        lines = []
        for statement in text.statements:
            line = None if statement.is_macro else t5x_lines.find(statement.scoped_key)
            if line is not None:
                lines.append(f"line {statement.line}, {line.theirs}: {line.remedy}")
            elif t5x_lines.is_theirs(statement.key):
                lines.append(f"line {statement.line}, {statement.key}: no equivalent is known")
        raise UserError(
            f"{text.source} is written for T5X's own programs: leave out its imports of "
            f"{', '.join(theirs)}, and for "
            + ("; for ".join(lines) or "the rest see `instructrec help t5x`")
        )


def _check_owners(statements: Sequence[Statement]) -> None:
    """Raises where two files define the same macro."""
    owners: dict[str, Statement] = {}
    for statement in statements:
        if not statement.is_macro or statement.is_required or statement.may_override:
            continue
        owner = owners.setdefault(statement.key, statement)
        if owner.source != statement.source:
            raise UserError(
                f"macro {statement.key} is defined in {owner.place} and in {statement.place}; "
                "each macro has one owner file: leave one of the files out, or override the macro "
                f"with --gin.{statement.key}=VALUE or in a file under overlays/ or presets/"
            )


def _check_used(statements: Sequence[Statement], shipped: Sequence[Statement]) -> None:
    """Raises where a macro is defined and nothing uses it."""
    used = {name for statement in statements for name in statement.macros}
    used_elsewhere = {name for statement in shipped for name in statement.macros}
    for statement in statements:
        if statement.is_macro and statement.key not in used:
            if statement.key in t5x_lines.MACROS:
                raise UserError(
                    f"{statement.key} ({statement.place}) is a macro of T5X's, but none of this "
                    f"run's; {t5x_lines.MACROS[statement.key]}"
                )
            if statement.source == COMMAND_LINE:
                raise unknown_name(
                    "macro on the command line (no gin file of this run uses it)",
                    statement.key,
                    used - {"gin.REQUIRED"},
                )
            if statement.key in used_elsewhere:
                continue
            raise UserError(
                f"macro {statement.key} of {statement.place} is used by no gin file; "
                f"remove it, or add the gin file that uses it with --gin_file"
            )


def _check_defined(statements: Sequence[Statement], known: Sequence[Statement]) -> None:
    """Raises one error that lists everything that still needs a value.

    Args:
      statements: what has to have one.
      known: statements whose macros are defined.
    """
    last: dict[str, Statement] = {}
    for statement in statements:
        if not (statement.is_required and statement.key in last):
            last[statement.key] = statement
    unset = [
        f"{name} (required by {statement.place})"
        for name, statement in last.items()
        if statement.is_required
    ]
    defined = {statement.key for statement in known if statement.is_macro}
    for statement in statements:
        for name in statement.macros:
            # A dot marks a constant of gin's own.
            if "." not in name and name not in defined:
                defined.add(name)
                unset.append(f"{name} (used in {statement.place})")
    if unset:
        raise UserError(
            "these gin macros have no value: " + "; ".join(unset) + "; give each with "
            '--gin.NAME=VALUE (strings in quotes: --gin.MODEL_DIR=\\"runs/a\\") or in a gin file'
        )


def _owners_of(message: str, statements: Sequence[Statement]) -> str:
    """Returns who set the macros that a message names, "" where it names none.

    Example: "MODEL_DIR is set in gin/runs/a.gin line 3, BATCH_SIZE in the command line"
    """
    named = dict.fromkeys(re.findall(r"\b[A-Z][A-Z0-9_]+\b", message))
    places = {s.key: s.place for s in statements if s.is_macro and not s.is_required}
    found = [f"{name} in {places[name]}" for name in named if name in places]
    return ", ".join(found).replace(" in ", " is set in ", 1)


def _check_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raises one error that lists the arguments that nothing binds."""
    try:
        bound = gin.get_bindings(function, resolve_references=False)
    except (KeyError, ValueError):
        bound = {}
    missing = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and name not in bound
        and name not in given
    ]
    if missing:
        module = function.__module__.rsplit(".", 1)[-1]
        raise UserError(
            f"no gin file binds these arguments of {module}.{function.__qualname__}: "
            f"{', '.join(missing)}; add the gin file that does with --gin_file (gin/runs/ holds "
            "one for each kind of run)"
        )


def _call(
    configured: Callable[..., Any],
    given: Mapping[str, Any],
    statements: Sequence[Statement],
) -> Any:
    """Calls the function; its errors lose what gin hangs on them and tell who set the macros."""
    try:
        return configured(**given)
    except Exception as error:
        # gin raises a copy without arguments, its message lengthened; the original is its context.
        original: BaseException = error
        while not original.args and original.__context__ is not None:
            original = original.__context__
        if isinstance(original, RuntimeError) and str(original).startswith("Required bindings for"):
            raise UserError(f"gin: {original}") from None
        if not isinstance(original, UserError):
            raise original from None
        message = str(original)
        if isinstance(original, SettingError):
            message = f"{_macro_of(original, statements)} {original.problem}"
        owners = _owners_of(message, statements)
        raise UserError(f"{message} ({owners})" if owners else message) from original


def _macro_of(error: SettingError, statements: Sequence[Statement]) -> str:
    """Returns the macro that gave a setting its value, or the setting and the line that did."""
    own = [s for s in statements if s.key.endswith(f".{error.owner}.{error.name}")]
    if not own:
        return f"{error.name} of {error.owner}"
    if len(own[-1].macros) == 1:
        return own[-1].macros[0]
    return f"{error.name} of {error.owner} ({own[-1].place})"
