"""Runs a stage's function with arguments from gin files and the command line.

Python stays free of gin decorators: gin files start with `from __gin__ import
dynamic_registration`, import the modules they configure, and bind the arguments of their
functions. Which macros stand where is checked by `gin_survey` before gin sees them.
"""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gin

from instructrec_jax.cli import gin_files, gin_survey
from instructrec_jax.errors import UserError

_logger = logging.getLogger(__name__)
_searched: set[Path] = set()


def run_with_gin(
    function: Callable[..., Any],
    *,
    gin_file_names: Sequence[str],
    bindings: Sequence[str] = (),
    arguments: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> Any:
    """Calls a function with every argument bound by gin.

    A function that has a parameter `config_text` gets the resolved config, to write it down.

    Args:
      function: function of a stage; gin files bind it by its module and name.
      gin_file_names: gin files, later ones after earlier ones.
      bindings: "NAME=value" of the command line, which stand above all files.
      arguments: arguments that gin does not give.
      dry_run: show the resolved config, and let a function with that parameter stop early.

    Returns:
      What the function returns; None after a dry run of a function that has no such parameter.

    Raises:
      UserError: for a mistake in gin files or bindings, and as the function itself raises.
    """
    paths = [gin_files.find_gin_file(name) for name in gin_file_names]
    lines = [_binding_line(binding) for binding in bindings]
    statements = gin_survey.survey(paths, lines)
    gin_survey.check(statements, f"{function.__module__}.{function.__qualname__}")
    macros = {statement.key for statement in statements if statement.is_macro}
    configured = _configure(function, paths, lines, macros)
    text = resolved_config()
    given = dict(arguments or {})
    parameters = inspect.signature(function).parameters
    if "config_text" in parameters:
        given["config_text"] = text
    if dry_run:
        for line in text.splitlines():
            _logger.info("%s", line)
        if "dry_run" not in parameters:
            return None
        given["dry_run"] = True
    _check_arguments(function, given)
    return _call(configured, given, statements)


def run_with_macros(
    function: Callable[..., Any], gin_file_names: Sequence[str], **macros: Any
) -> Any:
    """Calls a function configured by gin files and by macros given as Python values.

    Args:
      function: function of a stage.
      gin_file_names: gin files.
      **macros: values that stand above all files: numbers, strings, lists and the like.
    """
    return run_with_gin(
        function,
        gin_file_names=gin_file_names,
        bindings=[f"{name}={value!r}" for name, value in macros.items()],
    )


def resolved_config() -> str:
    """Returns the config that gin holds now, as text that gin can read again."""
    return gin.config_str(max_line_length=100)


def _configure(
    function: Callable[..., Any], paths: Sequence[Path], lines: Sequence[str], macros: Iterable[str]
) -> Callable[..., Any]:
    """Lets gin parse everything, and returns the function that takes its arguments from it."""
    for root in gin_files.search_roots():
        if root not in _searched:
            _searched.add(root)
            gin.add_config_file_search_path(str(root))
    gin.clear_config()
    try:
        for path in paths:
            with _without_search_notes():
                _parse_file(path, macros)
        if lines:
            gin.parse_config([*_import_lines(paths), *lines])
        gin.finalize()
    except (ValueError, NameError, AttributeError, ImportError, TypeError, RuntimeError) as error:
        raise UserError(f"gin cannot use this config: {error}") from None
    try:
        return gin.get_configurable(function)
    except KeyError:  # no gin file mentions the function
        return function


@contextmanager
def _without_search_notes() -> Iterator[None]:
    """Holds back gin's errors on folders that lack a file which it then finds in another."""

    def is_no_note(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Path not found")

    logging.getLogger().addFilter(is_no_note)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(is_no_note)


def _import_lines(paths: Sequence[Path]) -> list[str]:
    """Returns lines with which the command line can name what the files import."""
    lines = ["from __gin__ import dynamic_registration"]
    for name, module in gin_survey.imported_modules(paths).items():
        parent, _, last = module.rpartition(".")
        if name == module:
            lines.append(f"import {module}")
        else:
            lines.append(f"from {parent} import {last}" + ("" if name == last else f" as {name}"))
    return lines


def _macro_values(names: Iterable[str]) -> dict[str, Any]:
    """Returns those macros that have a value now."""
    found = {}
    for name in names:
        try:
            value = gin.query_parameter(f"{name}/gin.macro.value")
        except ValueError:  # not defined yet
            continue
        if value is not gin.REQUIRED and str(value) != "%gin.REQUIRED":
            found[name] = value
    return found


def _parse_file(path: Path, macros: Iterable[str]) -> None:
    """Lets gin parse a file, whose `%gin.REQUIRED` never unsets what an earlier file set.

    So that the order of files never decides a result.
    """
    before = _macro_values(macros)
    gin.parse_config_file(str(path))
    after = _macro_values(macros)
    for name in before.keys() - after.keys():
        gin.bind_parameter(f"{name}/gin.macro.value", before[name])


def _binding_line(binding: str) -> str:
    """Returns "NAME=value" as a line of gin."""
    name, equals, value = binding.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise UserError(f"--gin.{binding} has no value; expected --gin.NAME=VALUE")
    return f"{name.strip()} = {value.strip()}"


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
    statements: Sequence[gin_survey.Statement],
) -> Any:
    """Calls the function; its errors lose what gin hangs on them and tell who set the macros."""
    try:
        return configured(**given)
    except UserError as error:
        # gin raises a copy without arguments, its message lengthened; the original is its context.
        original: BaseException = error
        while not original.args and original.__context__ is not None:
            original = original.__context__
        message = str(original)
        owners = gin_survey.owners_of(message, statements)
        raise UserError(f"{message} ({owners})" if owners else message) from original
    except RuntimeError as error:
        if str(error).startswith("Required bindings for"):
            raise UserError(f"gin: {error}") from None
        raise
