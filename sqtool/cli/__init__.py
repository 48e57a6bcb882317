"""The command line: a light table of commands, each in a file of its own that is imported only when it is called.

Exit codes: 0 released (or what was asked is done), 1 refused, 2 usage or recipe, 3 inconclusive, 4 infrastructure,
130 cancelled.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

import click

import sqtool
from sqtool.errors import EXIT_CANCELLED, EXIT_INFRASTRUCTURE, SqtoolError, did_you_mean

COMMANDS = {
    "quantize": "Run a recipe: quantize, measure, gate, speculate, release.",
    "plan": "Show what a run would do, how long it takes and what the gate could decide. Runs nothing.",
    "calibrate": "Build a recipe's calibration set and say how well it covers the traffic.",
    "eval": "Evaluate a recipe's candidate, or any model, on tasks.",
    "gate": "Judge a candidate against its baseline; the exit code is the verdict.",
    "speculate": "Run a recipe up to the four arms of speculative decoding.",
    "advise": "Say what to deploy, at which load, by what a run measured.",
    "report": "Show or write again the report of a run, also for CI.",
    "rollout": "Read production's log: every arm in numbers, and whether the candidate does harm.",
    "explain": "Say why a verdict is what it is, and where to look.",
    "verify": "Check a release: every byte, its verdict, its signatures.",
    "releases": "List, show and verify releases; go back to an earlier one.",
    "keygen": "Make a pair of keys for signing releases.",
    "backend": "List and install the quantizers other than llm-compressor.",
    "schema": "Print the JSON Schema of a recipe or task file, for editors.",
    "doctor": "Say what this machine lacks and the command that repairs it.",
}

OUTPUT_FAILED = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EPIPE)
"""What writing to a standard stream may fail with; an error of a file that was opened names the file."""

EPILOG = """\b
Examples:
  sqtool plan recipes/awq4.yaml        what would run, and for how long
  sqtool quantize recipes/awq4.yaml    the whole job; exit code 0 = released
  sqtool gate --baseline bf16 --candidate w4a16 --task tool_calls

\b
Exit codes: 0 released or done, 1 refused, 2 usage or recipe,
3 inconclusive, 4 infrastructure, 130 cancelled.
"""


class _Commands(click.Group):
    """Commands from the table; help needs no import of theirs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        # `eval` is a built-in name, so the file has another.
        module = import_module(f"sqtool.cli.{'evaluate' if cmd_name == 'eval' else cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            hint = did_you_mean(name, list(COMMANDS))
            if name.endswith((".yaml", ".yml")):
                hint = f"did you mean `sqtool quantize {name}`?"
            raise click.UsageError(f"No such command {name!r}; {hint}", ctx=ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # click would exit with 1 for it, which means "refused" here.
            _silence()
            return EXIT_INFRASTRUCTURE

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_Commands,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=False,
)
@click.version_option(sqtool.__version__, prog_name="sqtool", message="%(prog)s %(version)s")
def cli() -> None:
    """Quantize a language model, measure it against its baseline, refuse what regressed, and verify speculative
    decoding on what passed."""


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with its code; an error is one message with a remedy, never a traceback."""
    sys.exit(call(args))


def call(args: list[str] | None = None) -> int:
    """Run one command line; its exit code."""
    try:
        return _call(args)
    except OSError as error:
        # What the result goes to is full or gone: nothing more can be said to it, and Python must not try at exit.
        _silence()
        _tell(f"Error: the result cannot be written: {error.strerror or error}")
        return EXIT_INFRASTRUCTURE


def _call(args: list[str] | None) -> int:
    try:
        result: Any = cli.main(args=args, prog_name="sqtool", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        _tell("cancelled")
        return EXIT_CANCELLED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SqtoolError as error:
        from sqtool.cli.terminal import error_json, show_error
        from sqtool.hygiene import terminal_json

        if "--json" in (sys.argv[1:] if args is None else args):
            click.echo(terminal_json(error_json(error)))
        with suppress(OSError):  # the exit code is the gate, whether anybody reads why or not
            show_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        _tell("cancelled")
        return EXIT_CANCELLED
    except Exception as error:  # the last line of defence: one message, the traceback in a file
        if isinstance(error, OSError) and error.errno in OUTPUT_FAILED and error.filename is None:
            raise
        from sqtool.pipeline.ending import out_of_memory

        if out_of_memory(error):  # before a run, which has its own words
            _tell("Error: out of memory\n  Raise the limit (ulimit -v, the container's), or use a larger machine.")
            return EXIT_INFRASTRUCTURE
        from sqtool.cli.terminal import show_unexpected

        with suppress(OSError):
            show_unexpected(error)
        return EXIT_INFRASTRUCTURE


def _tell(text: str) -> None:
    with suppress(OSError):
        click.echo(text, err=True)


def _silence() -> None:
    """Point those of our streams to nowhere that cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
