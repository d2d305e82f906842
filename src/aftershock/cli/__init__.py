"""The command line: `aftershock COMMAND`. Commands parse, call and print; what they do lies in the other rooms."""

import os
import sys
import traceback

import typer
from typer.main import get_command

from aftershock.cli import (
    capture,
    diagnose,
    diff,
    fingerprint,
    locate,
    models,
    protect,
    repair,
    replay,
    report,
    study,
    verify,
)
from aftershock.errors import ContractError, InputError

EXIT_INTERNAL, EXIT_INPUT, EXIT_CONTRACT, EXIT_INTERRUPTED = 1, 2, 4, 130

app = typer.Typer(
    name="aftershock",
    help="What one corrupted bit does to a large language model's inference.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("study")(study.command)
app.command("report")(report.command)
app.command("replay")(replay.command)
app.command("diff")(diff.command)
app.command("capture")(capture.command)
app.command("diagnose")(diagnose.command)
app.command("fingerprint")(fingerprint.command)
app.command("verify")(verify.command)
app.command("locate")(locate.command)
app.command("repair")(repair.command)
app.command("protect")(protect.command)
app.add_typer(models.app, name="models")


def main() -> None:
    """Entry point: runs a command and turns what went wrong into one sentence and an exit code."""
    # Threads that spin while they wait slow other processes down, workers among them. torch, which is not imported
    # yet, reads this once; workers inherit it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code (see docs/command-line.md)."""
    command = get_command(app)
    try:
        with command.make_context("aftershock", arguments or ["--help"]) as context:
            result = command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except typer.TyperException as error:
        return _refuse(
            f"{error.format_message().rstrip('.')} ('aftershock COMMAND --help' shows what is accepted)", EXIT_INPUT
        )
    except InputError as error:
        return _refuse(str(error), EXIT_INPUT)
    except ContractError as error:
        return _refuse(f"a contract failed: {error}", EXIT_CONTRACT)
    except KeyboardInterrupt:
        return _refuse("interrupted; what was stored is safe, go on with --resume", EXIT_INTERRUPTED)
    except Exception:
        traceback.print_exc()
        return _refuse("internal error; please report it with the lines above", EXIT_INTERNAL)
    return result if isinstance(result, int) else 0


def _refuse(message: str, code: int) -> int:
    print(f"aftershock: {message}", file=sys.stderr)
    return code
