"""This machine as targets see it: read once, before anything is rendered. Nothing is changed.

Configurations are anybody's: a file is read only where it is a regular one, small, and text.
"""

import contextlib
import importlib.metadata
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePath

from dfqs.errors import DfqsError, printable
from dfqs.storage.cache import home_directory
from dfqs.storage.documents import read_bounded
from dfqs.targets.contract import NOTHING, Seen, Site, System, Target

CONFIG_LIMIT_BYTES = 4 << 20
"""No configuration of these programs comes near."""
_ROUNDS = 5
_PROBE_S = 10.0


def this_system() -> System:
    """The kind of this machine."""
    return "windows" if sys.platform == "win32" else "macos" if sys.platform == "darwin" else "linux"


def read_site(targets: Iterable[Target], *, probe: bool = False) -> Site:
    """This machine, with everything looked at that these targets want to know.

    Args:
        probe: run what targets name for finding out whether their program can do anything here.

    Raises:
        UsageError: this user has no home directory.
    """
    targets = tuple(targets)
    home = home_directory("", "set HOME")
    programs = {name: found for target in targets for name in target.programs if (found := shutil.which(name))}
    site = Site(
        system=this_system(),
        home=home,
        environment=dict(os.environ),
        programs={name: Path(found) for name, found in programs.items()},
        packages=_versions({name for target in targets for name in (*target.packages, *target.companions)}),
    )
    site = look_at_all(site, targets)
    if not probe:
        return site
    probes = {target.name: _probe(target.probe) for target in targets if target.probe and target.probe[0] in programs}
    return replace(site, refusals={name: words for name, words in probes.items() if words is not None})


def look_at_all(site: Site, targets: Iterable[Target]) -> Site:
    """`site` with what the targets consult; what one path says may lead to the next."""
    for _ in range(_ROUNDS):
        wanted = {path for target in targets for path in target.consults(site)} - set(site.seen)
        if not wanted:
            break
        site = replace(site, seen={**site.seen, **{path: look(path) for path in wanted}})
    return site


def look(path: PurePath) -> Seen:
    """What stands at a path, through links."""
    try:
        state = Path(path).stat()
    except (OSError, ValueError):
        return NOTHING
    if stat.S_ISDIR(state.st_mode):
        return Seen(is_directory=True, is_there=True)
    text = None
    with contextlib.suppress(DfqsError, OSError, UnicodeDecodeError):
        text = read_bounded(Path(path), CONFIG_LIMIT_BYTES).decode("utf-8-sig")
    return Seen(text, is_there=True)


def _versions(names: Iterable[str]) -> dict[str, str]:
    """Of Python distributions that are installed beside dfqs."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _probe(words: tuple[str, ...]) -> str | None:
    """What a program says that cannot do what it is asked for; None: it can."""
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"'{' '.join(words)}' did not answer ({type(error).__name__})"
    if done.returncode == 0:
        return None
    said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
    return f"'{' '.join(words)}' says: {printable(said[0], 200) if said else f'exit code {done.returncode}'}"
