"""The command line: parse, call the API, print. ``tidings --help`` lists the verbs.

Results go to stdout, everything about the work (progress, notes, errors, the log of ``run``) to stderr. ``--json``
prints one JSON document, or one JSON object per line where results arrive one by one (``tail``, ``request --stream``,
``run``); errors are then JSON on stderr. Without it: tables on a terminal, aligned lines in a pipe.

Exit codes:

====  ==============================================================================
0     done; also: drained after SIGTERM or Ctrl-C, or whoever read our output left
1     failure: the user's module raised, something unexpected, something half done
2     usage: an option, name, payload, module, app, group or dead letter is wrong
3     the bus: no such file, unreachable, full, damaged, busy
4     a request or an order brought no reply: nobody answers, too late, or an error
130   interrupted
====  ==============================================================================

Verbs are imported when they are used: ``tidings --version`` imports neither cyclopts nor rich.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tidings.kernel.errors import BusError, InvalidOption, PublishFailed, RequestError, TidingsError, UsageError

if TYPE_CHECKING:
    import cyclopts

__all__ = ["main"]

OK, FAILED, USAGE, BUS, NO_REPLY, INTERRUPTED = 0, 1, 2, 3, 4, 130

STDIN = "\0"  # no argument of a process can be this
BEFORE_STDIN = ("--file", "--lines", "--text", "--json", "--stream", "--sort", "--skip-bad", "--dry-run")

VERBS = {
    "run": ("run:run", "Run an app: its handlers, until SIGTERM or Ctrl-C."),
    "dev": ("dev:dev", "Run an app while you write it: starts anew on a change."),
    "serve": ("serve:serve", "Open a bus to HTTP, browsers, gRPC and devices."),
    "token": ("token:app", "Tokens of clients of `serve`: add, list, revoke."),
    "device": ("device:app", "MQTT devices of `serve --engine nats`: add, list, remove."),
    "new": ("new:new", "Make a small project that runs, tests and deploys."),
    "publish": ("publish:publish", "Publish a message, or one for each line."),
    "request": ("request:request", "Ask a service, and print its reply."),
    "tail": ("tail:tail", "Print messages as they come."),
    "topics": ("topics:topics", "Topics: what is retained of them, and who reads them."),
    "replay": ("replay:replay", "Publish files, or what a bus retains, in time order at any speed."),
    "groups": ("groups:app", "Groups: who waits for how much; rename, retire, drop."),
    "peek": ("peek:peek", "Show retained messages; nobody is disturbed."),
    "find": ("find:find", "Find retained messages by id, key, header or text."),
    "trace": ("trace:trace", "Show the path of a message through handlers and topics."),
    "pause": ("control:pause", "Let a group start nothing, in every process."),
    "resume": ("control:resume", "Let a paused group go on."),
    "concurrency": ("control:concurrency", "Set how much a group handles at once."),
    "dead": ("dead:app", "Dead letters: list, show, edit, replay, purge."),
    "purge": ("purge:purge", "Let a group skip what waits for it."),
    "records": ("records:app", "Records that handlers keep: list, show, purge."),
    "backup": ("backup:backup", "Copy a SQLite bus while it is in use."),
    "restore": ("backup:restore", "Make a SQLite bus of a backup."),
    "capabilities": ("capabilities:capabilities", "What a bus can do."),
    "doctor": ("doctor:doctor", "Examine machine, Python, bus and clock: what is wrong, how to mend it."),
    "explain": ("explain:explain", "Explain an error by its code or name."),
    "bench": ("bench:bench", "Measure how fast a bus is here."),
    "asyncapi": ("asyncapi:asyncapi", "Describe an app: an AsyncAPI 3.1 document."),
    "topology": ("topology:topology", "Show what calls what in an app: Mermaid, SVG."),
    "completion": ("completion:completion", "What lets a shell complete verbs and options."),
    "demo": ("demo:demo", "Watch a small fleet survive what is done to it."),
}

HELP = """Event-driven Python, from one file to a fleet.

The bus is --url, or else TIDINGS_URL, or else [tool.tidings] url of the nearest pyproject.toml."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's) and return its exit code."""
    words = _dashes(_globals_last(list(sys.argv[1:] if argv is None else argv)))
    if words and words[0] in ("--version", "-V"):
        from tidings import __version__

        print(f"tidings {__version__}")
        return OK
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        _parser(overview=words[:1] in ([], ["-h"], ["--help"]))(words)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output left: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else FAILED
    except Exception as error:
        return _report(error, words)
    return OK


def _globals_last(words: list[str]) -> list[str]:
    """``--url`` and ``--json`` may stand before the verb too."""
    moved: list[str] = []
    while words and (words[0] in ("--json", "--url") or words[0].startswith("--url=")):
        count = 2 if words[0] == "--url" else 1
        moved, words = moved + words[:count], words[count:]
    end = words.index("--") if "--" in words else len(words)
    return words[:end] + moved + words[end:]


def _dashes(words: list[str]) -> list[str]:
    """The parser takes a lone ``-`` for an option; where it stands for standard input it becomes a word of its own."""
    before = ["", *words]
    return [
        STDIN if word == "-" and (prior in BEFORE_STDIN or not prior.startswith("-")) else word
        for prior, word in zip(before, words, strict=False)
    ]


def _parser(*, overview: bool) -> cyclopts.App:
    """``overview``: verbs are described in a line, without importing them; else by their docstrings."""
    import cyclopts

    app = cyclopts.App(
        name="tidings",
        help=HELP,
        help_format="plaintext",
        help_formatter="default" if sys.stdout.isatty() else "plain",
        version_flags=(),
        default_parameter=cyclopts.Parameter(negative=()),
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
    )
    for position, (name, (target, line)) in enumerate(VERBS.items()):
        app.command(f"tidings.cli.{target}", name=name, help=line if overview else None, sort_key=position)
    return app


def _report(error: Exception, words: list[str]) -> int:
    """Print an error in its shape; the exit code that says whose fault it is."""
    from . import show

    as_json = "--json" in words
    if os.environ.get("TIDINGS_DEBUG"):
        show.traceback_of(error)
    if isinstance(error, show.UserCodeFailed):
        show.user_code_failed(error, as_json)
        return FAILED
    if "cyclopts" in sys.modules and isinstance(error, sys.modules["cyclopts"].CycloptsError):
        show.error(_misused(error), as_json)
        return USAGE
    shaped = in_our_shape(error)
    show.error(shaped, as_json)
    return exit_code(type(shaped))


def in_our_shape(error: Exception) -> TidingsError:
    """An error of ours as it is; what nobody expected, on one line."""
    if isinstance(error, TidingsError):
        return error
    if isinstance(error, FileNotFoundError) and not _somewhere():
        return InvalidOption("the working directory was deleted", mend="cd to one that exists")
    what = f"{type(error).__name__}: {error}".strip().removesuffix(":").partition("\n")[0]
    return TidingsError(what, mend="run again with TIDINGS_DEBUG=1 for the traceback")


def _somewhere() -> bool:
    """Whether the working directory still is."""
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def exit_code(error: type[TidingsError]) -> int:
    """With what a command ends that raises such an error."""
    if issubclass(error, PublishFailed):
        return FAILED
    kinds: list[tuple[type[TidingsError], int]] = [(UsageError, USAGE), (BusError, BUS), (RequestError, NO_REPLY)]
    return next((code for kind, code in kinds if issubclass(error, kind)), FAILED)


def _misused(error: cyclopts.CycloptsError) -> TidingsError:
    """What the parser refused, in our shape: with the nearest name, and where to read on."""
    from tidings.kernel.errors import nearest

    chain = list(error.command_chain or ())
    unused = list(error.unused_tokens or ())
    what, found, guess = str(error).partition(" Did you mean ")
    guess = f"did you mean {guess.partition('?')[0]}? " if found else ""
    if type(error).__name__ == "UnusedCliTokensError" and error.app is not None:
        commands = {"groups": ["rename", "retire", "drop"]}.get(chain[0] if chain else "", [])
        given = [word for word in error.root_input_tokens or () if word not in chain]
        guess = next((f"{close} " for word in given if (close := nearest(word, commands))), "")
        what = f"too many arguments: {' '.join(unused)}"
    what = what.partition(" Available commands")[0].rstrip(". ")
    refused = InvalidOption(what[:1].lower() + what[1:], mend=f"{guess}see `{' '.join(['tidings', *chain, '--help'])}`")
    refused.where = ""
    return refused
