"""``tidings dev``: ``run`` that starts anew when a file of the project changes, and says what to try."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Annotated, Any

from cyclopts import Parameter

from tidings import App
from tidings.asyncapi.schemas import example_of
from tidings.kernel.topics import CAPTURE, DEAD
from tidings.router import Registration
from tidings.transports._url import shown

from . import run, show
from ._bus import Source, configured, file_of, is_memory
from ._options import Json, Target, Url
from ._target import find_target, source_folder
from ._watch import Files

CHILD = "import sys; from tidings.cli import main; sys.exit(main())"
ENVIRONMENT = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}  # bytecode tells changes within a second not apart
ALIVE = "TIDINGS_DEV_ALIVE"  # names a pipe that the supervisor keeps open as long as it lives
SOON = 1.0  # seconds in which an idle app ends
TRIED = 3  # commands of a kind
PLACE = "'<its URL>'"


def dev(
    target: Annotated[Target | None, Parameter(help="As for `tidings run`. Default: the only one here.")] = None,
    /,
    *,
    url: Url = None,
    json: Json = False,
    child: Annotated[bool, Parameter(show=False)] = False,
) -> None:
    """Run an app while you write it: it starts anew whenever a Python file of the project changes.

    Handlers finish before that. What cannot be imported says so, and waits for the next change. Ctrl-C ends it; a
    second one does not wait for handlers.
    """
    if child and target:
        if pipe := os.environ.pop(ALIVE, ""):
            Thread(target=_end_with, args=(int(pipe),), daemon=True).start()
        run.serve(target, url, json, tell)
        return
    if (source := configured(url)) is not None:
        source.options()
    found = find_target(target, Path.cwd())
    words = [sys.executable, "-c", CHILD, "dev", found, "--child", *(["--url", url] if url else [])]
    _Supervisor([*words, *(["--json"] if json else [])], source_folder(found), json).run()


def _end_with(pipe: int) -> None:
    """End this process when the one at the other end is gone, however that died."""
    while os.read(pipe, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


class _Supervisor:
    """Keeps one child running, a new one for each change of the files."""

    def __init__(self, words: list[str], folder: Path, json: bool) -> None:
        self.words, self.json = words, json
        self.files = Files(Path.cwd(), folder)
        self.signals = 0  # how often we were asked to end
        self.child: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._asked)
        alive, self.kept = os.pipe()
        env = {**ENVIRONMENT, ALIVE: str(alive)}
        while not self.signals:
            with subprocess.Popen(self.words, env=env, pass_fds=(alive,)) as self.child:
                changed = self._watch(self.child)
                if changed:
                    self._say(f"{', '.join(changed)} changed", {"changed": changed})
                self._drain(self.child)

    def _asked(self, number: int, frame: Any) -> None:
        """A terminal's Ctrl-C reaches the child too; a signal that only we got is passed on when it drains."""
        self.signals += 1
        if self.signals > 1 and self.child is not None:
            self.child.kill()

    def _watch(self, child: subprocess.Popen[bytes]) -> list[str]:
        """The files that changed; none if we were asked to end."""
        waits = False
        while not self.signals:
            if not waits and child.poll() is not None:
                self._say("waiting for a change; Ctrl-C ends", {"ended": child.returncode})
                waits = True
            if changed := self.files.changed():
                return changed
        return []

    def _drain(self, child: subprocess.Popen[bytes]) -> None:
        if self.signals:
            _wait(child)  # it may have heard of it already
        child.terminate()
        if not _wait(child):
            self._say("handlers finish first; a second Ctrl-C does not wait for them", {"draining": child.pid})
        child.wait()

    def _say(self, text: str, event: dict[str, Any]) -> None:
        show.document(event) if self.json else show.note(text)


def _wait(child: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended, soon."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(SOON)
    return child.returncode is not None


def tell(app: App, source: Source, json: bool) -> None:
    """Print what listens, and commands to try."""
    tries = commands(app, source)
    run.tell(app, source, json, **{"try": tries})
    if json:
        return
    if tries:
        show.say("\nin another terminal:")
    for line in tries:
        show.say(f"  {show.styled(line, show.CYAN)}")
    if any(PLACE in line for line in tries):
        show.note(f"{PLACE}: it has a secret in it, which is not printed")
    show.note("\nstarts anew when a file changes; Ctrl-C ends it")


def commands(app: App, source: Source) -> list[str]:
    """Commands that do something on this app's bus: publish and ask with bodies its types take, look, mend."""
    if (url := _option(source)) is None:
        return []
    main = [r for r in app.registrations if not r.bus]
    published = {
        r.template: r for r in main if r.role == "on" and not r.pattern.startswith(DEAD) and ">" not in r.pattern
    }
    asked = {r.template: r for r in main if r.role == "answer"}
    tries = [_with_body("publish", name, r, url) for name, r in list(published.items())[:TRIED]]
    tries += [_with_body("request", name, r, url) for name, r in list(asked.items())[:TRIED]]
    return [*tries, f"tidings tail '>'{url}", f"tidings groups{url}", f"tidings dead ls{url}"]


def _with_body(verb: str, template: str, r: Registration, url: str) -> str:
    topic = CAPTURE.sub(r"\1", template).replace("*", "any")
    body = example_of(r.plan.type, lax=r.lax)
    given = "'...'" if body is None else shlex.quote(body)
    return f"tidings {verb} {topic} {given}{url}"


def _option(source: Source) -> str | None:
    """What names the bus on a command line, without its secrets; None of a bus that nothing there can name."""
    options = source.options()
    if is_memory(options):
        return None  # nobody else can reach it
    if source.origin.startswith("[tool.tidings]"):
        return ""
    url = source.url if isinstance(source.url, str) else str(source) if file_of(options) else None
    if url is None:
        return None
    if shown(url) == url:
        return f" --url {shlex.quote(url)}"
    return ' --url "$TIDINGS_URL"' if source.origin == "TIDINGS_URL" else f" --url {PLACE}"
