"""Reads gin files without running them: who defines, uses and requires which macro.

gin itself lets the last definition win, ignores macros that nothing uses, and stops at the first
required one that is unset. The survey finds all such mistakes at once and names their files.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gin import config_parser

from instructrec_jax.cli import gin_files, t5x_macros
from instructrec_jax.errors import UserError, unknown_name

COMMAND_LINE = "the command line"
_REQUIRED = "gin.REQUIRED"
_OVERLAYS = "overlays"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statement:
    """One line `key = value` of a gin file.

    Attributes:
      key: macro name, or full name of a configurable and its argument.
      is_macro: whether the key is a macro.
      is_required: whether the value only says that someone else must give one.
      source: file, or `COMMAND_LINE`.
      line: line in the file.
      macros: names of the macros in the value.
      references: full names of the configurables in the value.
    """

    key: str
    is_macro: bool
    is_required: bool
    source: str
    line: int
    macros: tuple[str, ...]
    references: tuple[str, ...]

    @property
    def place(self) -> str:
        """Where the statement stands, as a message names it."""
        return self.source if self.source == COMMAND_LINE else f"{self.source} line {self.line}"

    @property
    def may_override(self) -> bool:
        """Whether the statement may replace what another file defines."""
        return self.source == COMMAND_LINE or _OVERLAYS in Path(self.source).parts


class _Recorder(config_parser.ParserDelegate):
    """Notes the macros and configurables that a value mentions."""

    def __init__(self) -> None:
        self.macros: list[str] = []
        self.references: list[str] = []

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> str:
        """Notes a configurable, without its scope."""
        self.references.append(scoped_configurable_name.rsplit("/", 1)[-1])
        return f"@{scoped_configurable_name}"

    def macro(self, macro_name: str) -> str:
        """Notes a macro."""
        self.macros.append(macro_name)
        return f"%{macro_name}"

    def take(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Returns and forgets what was noted."""
        noted = tuple(self.macros), tuple(self.references)
        self.macros.clear()
        self.references.clear()
        return noted


def survey(files: Sequence[Path], bindings: Sequence[str]) -> list[Statement]:
    """Returns every statement of the files, their includes and the command line, in order.

    Args:
      files: gin files.
      bindings: lines `NAME = value` of the command line.

    Raises:
      UserError: where a line is not valid gin.
    """
    found: list[Statement] = []
    imported: dict[str, str] = {}
    for file in files:
        found += _read_file(file, seen=(), imported_anywhere=imported)
    for binding in bindings:
        found += _read(binding, COMMAND_LINE, seen=(), imported_anywhere=imported)
    return found


def imported_modules(files: Sequence[Path]) -> dict[str, str]:
    """Returns how gin files call the modules they import, and the modules' full names.

    The command line may use these names; where two files give one name to two modules, it means
    the first.

    Raises:
      UserError: where a line is not valid gin.
    """
    imported: dict[str, str] = {}
    for file in files:
        list(_read_file(file, seen=(), imported_anywhere=imported))
    return imported


def check(statements: Sequence[Statement], function_name: str) -> None:
    """Raises one error for what gin would let pass or report one at a time.

    A file may say more than one kind of run uses: what any shipped file uses is no mistake there.
    On the command line it is.

    Args:
      statements: from `survey`.
      function_name: full name of the function that gin is about to call.

    Raises:
      UserError: for a macro with two owners, undefined, unused or required and unset, and for a
        binding of a configurable that nothing uses.
    """
    shipped = survey([gin_files.find_gin_file(name) for name in gin_files.shipped_files()], [])
    _check_owners(statements)
    _check_used(statements, shipped)
    _check_defined(statements)
    _check_bindings([*statements, *shipped], statements, function_name)


def owners_of(message: str, statements: Sequence[Statement]) -> str:
    """Returns who set the macros that a message names, "" where it names none.

    Args:
      message: of an error.
      statements: from `survey`.

    Example:
      "MODEL_DIR is set in gin/runs/a.gin line 3, BATCH_SIZE in the command line"
    """
    named = dict.fromkeys(re.findall(r"\b[A-Z][A-Z0-9_]+\b", message))
    places = {s.key: s.place for s in statements if s.is_macro and not s.is_required}
    found = [f"{name} in {places[name]}" for name in named if name in places]
    return ", ".join(found).replace(" in ", " is set in ", 1)


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
                f"with --gin.{statement.key}=VALUE or in a file under {_OVERLAYS}/"
            )


def _check_used(statements: Sequence[Statement], shipped: Sequence[Statement]) -> None:
    """Raises where a macro is defined and nothing uses it."""
    used = {name for statement in statements for name in statement.macros}
    used_elsewhere = {name for statement in shipped for name in statement.macros}
    for statement in statements:
        if statement.is_macro and statement.key not in used:
            if statement.key in t5x_macros.NOT_FOLLOWED:
                raise UserError(
                    f"{statement.key} ({statement.place}) is a macro of T5X's that says nothing "
                    f"here: {t5x_macros.NOT_FOLLOWED[statement.key]}; leave it out"
                )
            if statement.source == COMMAND_LINE:
                raise unknown_name(
                    "macro on the command line (no gin file of this run uses it)",
                    statement.key,
                    used - {_REQUIRED},
                )
            if statement.key in used_elsewhere:
                continue
            raise UserError(
                f"macro {statement.key} of {statement.place} is used by no gin file; "
                f"remove it, or add the gin file that uses it with --gin_file"
            )


def _check_defined(statements: Sequence[Statement]) -> None:
    """Raises one error that lists everything that still needs a value."""
    last: dict[str, Statement] = {}
    for statement in statements:
        if not (statement.is_required and statement.key in last):
            last[statement.key] = statement
    unset = [
        f"{name} (required by {statement.place})"
        for name, statement in last.items()
        if statement.is_required
    ]
    defined = {statement.key for statement in statements if statement.is_macro}
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


def _check_bindings(
    users: Sequence[Statement], statements: Sequence[Statement], function_name: str
) -> None:
    """Raises where an argument is bound of a configurable that no user of any refers to."""
    called = {name for statement in users for name in statement.references}
    called.add(function_name)
    for statement in statements:
        if statement.is_macro:
            continue
        configurable = statement.key.rpartition(".")[0]
        if not any(name == configurable or name.endswith(f".{configurable}") for name in called):
            raise UserError(
                f"{statement.place} binds {statement.key}, but this run of {function_name} never "
                "uses that configurable; remove the line or the file"
            )


def _read_file(
    path: Path, *, seen: tuple[Path, ...], imported_anywhere: dict[str, str]
) -> Iterator[Statement]:
    """Yields the statements of a file and of what it includes, noting what they import."""
    if path in seen:
        raise UserError(f"{path} includes itself; remove the include")
    text = path.read_text(encoding="utf-8")
    yield from _read(text, _shown(path), seen=(*seen, path), imported_anywhere=imported_anywhere)


def _read(
    text: str, source: str, *, seen: tuple[Path, ...], imported_anywhere: dict[str, str]
) -> Iterator[Statement]:
    """Yields the statements of a gin text; the command line sees what any file imports."""
    recorder = _Recorder()
    imported = dict(imported_anywhere) if source == COMMAND_LINE else {}
    try:
        for item in config_parser.ConfigParser(text, recorder):
            if isinstance(item, config_parser.ImportStatement):
                imported |= _imported_name(item)
                imported_anywhere |= _imported_name(item) | imported_anywhere
            elif isinstance(item, config_parser.IncludeStatement):
                path = gin_files.find_gin_file(item.filename)
                yield from _read_file(path, seen=seen, imported_anywhere=imported_anywhere)
            elif isinstance(item, config_parser.BindingStatement):
                yield _statement(item, recorder, source, imported)
    except SyntaxError as error:
        raise UserError(_syntax_message(error, source, text)) from None


def _statement(item: Any, recorder: _Recorder, source: str, imported: dict[str, str]) -> Statement:
    """Returns what the survey keeps of a binding."""
    macros, references = recorder.take()
    selector = (
        item.selector if item.arg_name else "/".join(filter(None, (item.scope, item.selector)))
    )
    return Statement(
        key=f"{_full_name(selector, imported)}.{item.arg_name}" if item.arg_name else selector,
        is_macro=not item.arg_name,
        is_required=item.value == f"%{_REQUIRED}",
        source=source,
        line=item.location.line_num,
        macros=macros,
        references=tuple(_full_name(name, imported) for name in references),
    )


def _imported_name(item: Any) -> dict[str, str]:
    """Returns how a file calls an imported module, and the module's full name."""
    if item.module.startswith("__gin__"):
        return {}
    if item.alias:
        return {item.alias: item.module}
    return {item.module.rsplit(".", 1)[-1] if item.is_from else item.module: item.module}


def _full_name(selector: str, imported: dict[str, str]) -> str:
    """Returns a configurable's full name, whatever the file calls its module."""
    for alias, module in imported.items():
        if selector.startswith(f"{alias}."):
            return module + selector[len(alias) :]
    return selector


def _shown(path: Path) -> str:
    """Returns a path as short as the user could have given it."""
    for root in (Path.cwd(), *gin_files.search_roots()):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return str(path)


def _syntax_message(error: SyntaxError, source: str, text: str) -> str:
    """Returns a message for a line that is not gin."""
    lines = text.splitlines()
    number = error.lineno or 1
    line = lines[number - 1].strip() if 0 < number <= len(lines) else ""
    if source == COMMAND_LINE:
        return (
            f"--gin.{text.replace(' = ', '=', 1)} is not valid gin ({error.msg}); strings need "
            "quotes that reach the command, such as --gin.MODEL_DIR='\"runs/a\"'"
        )
    return f"{source} line {number} is not valid gin ({error.msg}): {line!r}"
