"""Going on with a sweep: ``distrib train -m resume=multirun/latest``.

The sweep's own words are used; those typed again must say the same, except for how many trials there
are and run at once. Code is not trusted for lying in a directory: ``plugins`` and ``--config-dir`` are
typed again.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from distrib.cli.sweep import Sweep
from distrib.cli.trials import ask, grouped
from distrib.errors import ConfigError
from distrib.sweeps.driver import left_over
from distrib.sweeps.results import RECORD, SETTLED, Record

FREE = ("sweep.parallel", "sweep.num_trials", "plugins")
"""May be said anew when a sweep goes on."""
LOCK = ".lock"


def split_resume(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of ``resume=`` and the other words."""
    given = [word.partition("=")[2] for word in overrides if word.startswith("resume=")]
    others = [word for word in overrides if not word.startswith("resume=")]
    return (given[-1] if given else None), others


def find(resume: str) -> Path:
    """The directory of a sweep. Raises `ConfigError` where there is none."""
    root = Path(resume).resolve()
    if not (root / RECORD).is_file():
        raise ConfigError(
            "resume",
            resume,
            "no sweep is there: with -m, give a sweep's directory; one run goes on without -m",
        )
    return root


def resumed(resume: str, overrides: Sequence[str], *, config_dirs: Sequence[str]) -> Sweep:
    """A sweep as it was left: settled trials are kept, failed and unfinished ones run again.

    Raises `ConfigError` for a directory without a sweep, and for other settings.
    """
    root = find(resume)
    record = Record.read(root)
    words = merged(record.overrides, overrides, root=root)
    asked = ask(words, config_dirs=config_dirs)
    known = [(result.number, result.overrides) for result in record.trials]
    further = list(enumerate(asked.search.plan(asked.space)))[len(known) :]
    trials = [grouped(asked.trial(number, own), root=root) for number, own in [*known, *further]]
    planned, record = left_over(trials, record, settled=SETTLED)
    record = replace(record, overrides=tuple(words))
    return Sweep(asked=asked, root=root, record=record, planned=planned, example=asked.example(trials))


def merged(stored: Sequence[str], typed: Sequence[str], *, root: Path) -> list[str]:
    """The words of the sweep with those typed again. Raises `ConfigError` where the two differ."""
    before = {key(word): word for word in stored if key(word) != "plugins"}
    for word in typed:
        if key(word) in FREE:
            continue
        if before.get(key(word)) != word:
            was = before.get(key(word), f"no {key(word)} of its own")
            raise ConfigError(
                key(word),
                word.partition("=")[2],
                f"the sweep in {root} has {was}: leave it out, or start a new sweep",
            )
    free = {key(word): word for word in typed}
    return list({**before, **free}.values())


def key(word: str) -> str:
    """The dotted key or group that a word sets."""
    return word.partition("=")[0]


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keeps a second process off the sweep in ``root``. Raises `ConfigError` where there is a first."""
    lock = FileLock(root / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError("resume", root, "this sweep is running: wait for it, or end it first") from error
    try:
        yield
    finally:
        lock.release()


def resume_command(root: Path, record: Record, *, config_dirs: Sequence[str]) -> str:
    """What goes on with the sweep."""
    plugins = [word for word in record.overrides if key(word) == "plugins"]
    folders = [word for folder in config_dirs for word in ("--config-dir", folder)]
    return shlex.join(["distrib", "train", "-m", f"resume={root}", *plugins, *folders])
