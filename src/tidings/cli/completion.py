"""``tidings completion``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from tidings.kernel.errors import InvalidOption

from . import _parser, show
from ._options import DryRun, Json, flag

Shell = Literal["bash", "zsh", "fish"]
SHELLS: tuple[Shell, ...] = ("bash", "zsh", "fish")


def completion(
    shell: Annotated[Shell | None, Parameter(help="bash, zsh or fish. Default: that of SHELL.")] = None,
    /,
    *,
    install: Annotated[bool, flag("Put it where the shell finds it.", "--install")] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Print what lets a shell complete verbs and options: eval "$(tidings completion bash)".

    --install puts it where the shell finds it, from its next start on; for zsh a line in its start-up file says where.
    """
    chosen = shell or _own()
    app = _parser(overview=False)
    script = app.generate_completion(prog_name="tidings", shell=chosen)
    if not install:
        show.document({"shell": chosen, "script": script}) if json else show.say(script)
        return
    where = None if dry_run else app.install_completion(shell=chosen)
    if json:
        show.document({"shell": chosen, "installed": str(where) if where else None})
    else:
        show.say(f"installed {where}" if where else f"would install the completion of {chosen}")


def _own() -> Shell:
    named = Path(os.environ.get("SHELL", "")).name
    for shell in SHELLS:
        if shell == named:
            return shell
    raise InvalidOption("which shell?", why=f"SHELL names {named or 'none'}", mend="bash, zsh or fish")
