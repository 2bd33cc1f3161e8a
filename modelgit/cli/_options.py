"""Commands and groups in the house style, with the options that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from modelgit.cli._output import ColorChoice
from modelgit.errors import did_you_mean

if TYPE_CHECKING:
    from modelgit.cli._session import Session

__all__ = [
    "SEED",
    "Command",
    "Group",
    "command",
    "fisher_option",
    "group",
    "json_option",
    "pass_session",
    "prune_option",
]

F = TypeVar("F", bound=Callable[..., Any])

pass_session = click.pass_obj


class _Seed(click.IntRange):
    """A whole number that records can hold, whose bounds are no news in a help text."""

    def __init__(self) -> None:
        super().__init__(-(2**63), 2**63 - 1)

    def _describe_range(self) -> str:
        return "64 bits"


SEED = _Seed()


def _change_directory(context: click.Context, _: click.Parameter, value: Sequence[str]) -> None:
    if value and not context.resilient_parsing:
        session: Session = context.obj
        for directory in value:
            session.change_directory(directory)


def _set_color(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None and not context.resilient_parsing:
        session: Session = context.obj
        session.output.color = cast(ColorChoice, value)


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        context.obj.debug = True


def _set_quiet(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        context.obj.output.quiet = True


def _set_no_progress(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        context.obj.no_progress = True


def _common_options() -> list[click.Option]:
    """Options that may stand before the command or after it."""

    def option(
        *names: str, callback: Callable[[click.Context, click.Parameter, Any], None], **more: Any
    ) -> click.Option:
        return click.Option(names, expose_value=False, is_eager=True, callback=callback, **more)

    return [
        option(
            "-C",
            "start_directory",
            metavar="DIR",
            multiple=True,
            callback=_change_directory,
            help="Act as if started in DIR.",
        ),
        option(
            "--color",
            type=click.Choice(["auto", "always", "never"]),
            callback=_set_color,
            help="Colour the output (auto: on a terminal, unless NO_COLOR is set).",
        ),
        option(
            "-q", "--quiet", is_flag=True, callback=_set_quiet, help="Say nothing but what was asked for, and errors."
        ),
        option("--no-progress", is_flag=True, callback=_set_no_progress, help="Show no progress bars."),
        option("--debug", is_flag=True, callback=_set_debug, help="Show the traceback of an error."),
    ]


class Command(click.Command):
    """A command with the common options and one example in its help."""

    def __init__(self, *arguments: Any, example: str = "", **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.example = example
        self.common = _common_options()
        self.params.extend(self.common)

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """As click does, but an error of its parser names the command, too, so that a hint can."""
        try:
            return super().parse_args(context, args)
        except click.UsageError as error:
            error.ctx = error.ctx or context
            raise

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The example, the command's own options, then the common ones."""
        if self.example:
            with formatter.section("Example"):
                for line in self.example.splitlines():
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")
        _format_options(self, context, formatter)


class Group(click.Group):
    """A family of commands (`mgit remote add`) that suggests the nearest name for an unknown one.

    `default` is what it does when nothing follows (`mgit remote` lists remotes), and with `implied` also when what
    follows is no command of the family (`mgit fisher main`); `foreign` holds words of other programs, with what to type
    instead.
    """

    def __init__(
        self,
        *arguments: Any,
        example: str = "",
        default: str | None = None,
        implied: bool = False,
        foreign: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(*arguments, **more)
        self.example = example
        self.default = default
        self.implied = implied
        self.foreign = foreign or {}
        self.common = _common_options()
        self.params.extend(self.common)

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; raises click's UsageError with the nearest name when there is none."""
        name = arguments[0]
        found = self.get_command(context, name)
        if found is None and not context.resilient_parsing:
            raise _no_such_command(name, self.list_commands(context), context, hint=self.foreign.get(name))
        return (name if found else None), found, arguments[1:]

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Fall back on the default command."""
        if self.default and not args:
            args = [self.default]
        elif self.default and self.implied:
            args = self._with_default(context, args, self.default)
        return super().parse_args(context, args)

    def _with_default(self, context: click.Context, args: list[str], default: str) -> list[str]:
        """`args` with the default command before the first word that is neither a command nor a common option."""
        own = {name: option.is_flag for option in self.common for name in option.opts}
        at = 0
        while at < len(args) and args[at] in own:
            at += 1 if own[args[at]] else 2
        if at < len(args) and args[at] in ("--help", *self.list_commands(context)):
            return args
        return [*args[:at], default, *args[at:]]

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands, each with the whole first sentence of its help."""
        found = [(name, self.get_command(context, name)) for name in self.list_commands(context)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, item.get_short_help_str(limit=300)) for name, item in found if item])

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The example, the commands, then the options."""
        if self.example:
            with formatter.section("Example"):
                for line in self.example.splitlines():
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")
        self.format_commands(context, formatter)
        _format_options(self, context, formatter)


def _format_options(self: Command | Group, context: click.Context, formatter: click.HelpFormatter) -> None:
    own = [
        record
        for p in self.get_params(context)
        if isinstance(p, click.Option) and p not in self.common and (record := p.get_help_record(context))
    ]
    shared = [record for p in self.common if (record := p.get_help_record(context))]
    if own:
        with formatter.section("Options"):
            formatter.write_dl(own)
    with formatter.section("Common options"):
        formatter.write_dl(shared)


def _no_such_command(
    name: str, known: Iterable[str], context: click.Context, *, hint: str | None = None
) -> click.UsageError:
    """The error for an unknown command, with `hint` or else the nearest known name."""
    full = " ".join((*context.command_path.split()[1:], name))
    near = "" if hint else did_you_mean(name, known)
    error = click.UsageError(f"no command `{full}`{near}", context)
    error.hint = hint or ("" if near else f"`{context.command_path} --help` lists the commands")  # type: ignore[attr-defined]
    return error


def command(name: str, *, example: str, **more: Any) -> Callable[[Callable[..., Any]], Command]:
    """Make a command of a function; its docstring is the help."""
    return cast("Callable[[Callable[..., Any]], Command]", click.command(name, cls=Command, example=example, **more))


def group(name: str, *, example: str, **more: Any) -> Callable[[Callable[..., Any]], Group]:
    """Make a group of a function; its docstring is the help."""
    return cast("Callable[[Callable[..., Any]], Group]", click.group(name, cls=Group, example=example, **more))


def prune_option(function: F) -> F:
    """`--prune=now`: forget what `undo` could still reach, so that its bytes go too."""
    return click.option(
        "--prune",
        type=click.Choice(["now"]),
        metavar="now",  # not [now], which looks as if it could be left out
        help="now: forget all operations but the current one. Nothing before it can be undone then.",
    )(function)


def fisher_option(text: str) -> Callable[[F], F]:
    """`--fisher` of the commands that move commits: estimates of the weights travel along."""
    return click.option("--fisher", is_flag=True, help=text)


def json_option(function: F) -> F:
    """`--json`: one document with a versioned schema in place of text."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)
