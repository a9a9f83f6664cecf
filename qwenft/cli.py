"""The command line: every command under its name, and the one door where errors end."""

import os
import signal
import sys
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from qwenft.commands.app import page
from qwenft.commands.config import config
from qwenft.commands.demo import demo
from qwenft.commands.doctor import doctor
from qwenft.commands.evaluate import evaluate
from qwenft.commands.export import export
from qwenft.commands.options import DEBUG, open_screen
from qwenft.commands.predict import predict
from qwenft.commands.prepare import prepare
from qwenft.commands.runs import runs
from qwenft.commands.steps import steps
from qwenft.commands.train import train
from qwenft.core.errors import QwenftError
from qwenft.core.usage import usage_error, with_resume_value


class _Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _plain_types(super().get_params(ctx), ctx)


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _plain_types(super().get_params(ctx), ctx)


class _Train(_Command):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`--resume` may stand without a value: before an option, a setting or the end of the line."""
        return super().parse_args(ctx, with_resume_value(args))


_TYPES = {"bool": "", "int": "N", "int range": "N", "float": "X", "str": "TEXT", "list[str]": "TEXT", "path": "PATH"}


def _plain_types(params: list[Any], context: Any) -> list[Any]:
    """In the help a value is named by one word, and a flag, which takes none, by none."""
    for param in params:
        if param.metavar is None:
            param.metavar = _TYPES.get(param.display_type(context).strip("<>"), "TEXT")
    return params


app = typer.Typer(
    help="Fine-tune Qwen2.5-VL to find things in pictures.\n\nA data set goes in, a measured adapter comes out:\n\n"
    "\b\n  qwenft prepare --dataset Kangheng/refcocog\n  qwenft train\n  qwenft eval --baseline\n"
    '  qwenft predict image.jpg "find the dog"',
    cls=_Group,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(wanted: bool) -> None:
    """Eager, for without a command the group itself is not called."""
    if wanted:
        from qwenft import __version__

        typer.echo(f"qwenft {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Print the version.")
    ] = False,
) -> None: ...


app.command(cls=_Command)(prepare)
app.command(cls=_Train)(train)
app.command(cls=_Command)(predict)
app.command(name="eval", cls=_Command)(evaluate)
app.command(cls=_Command)(steps)
app.command(cls=_Command)(runs)
app.command(cls=_Command)(config)
app.command(cls=_Command)(export)
app.command(cls=_Command)(doctor)
app.command(name="app", cls=_Command)(page)
app.command(cls=_Command)(demo)


def main() -> None:
    """Run the command line; the only place where an error is printed and becomes an exit status."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # a bar is erased, a half folder removed
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a name that the console cannot show must not end the command
            stream.reconfigure(errors="backslashreplace")
    try:
        status = app(sys.argv[1:] or ["--help"], prog_name="qwenft", standalone_mode=False)
    except QwenftError as error:
        status = _failed(error, error)
    except TyperException as error:
        status = _failed(usage_error(error, sys.argv[1:]), error)
    except Exception as error:
        message, hint = f"a bug in qwenft: {type(error).__name__}: {error}", "--debug shows where; please report it"
        status = _failed(QwenftError(message, hint=hint), error)
    sys.exit(status if isinstance(status, int) else 0)


def _failed(shown: QwenftError, error: Exception) -> int:
    if os.environ.get(DEBUG):
        raise error
    command = sys.argv[1] if sys.argv[1:] and sys.argv[1].isidentifier() else ""
    shown.hint = shown.hint or f"qwenft {command} --help".replace("  ", " ")
    open_screen().error(shown)
    return shown.exit_code
