"""One rank of `distrib doctor`: ``python -m distrib.doctor.worker FOLDER START_TIMEOUT``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from distrib.doctor.examine import examine
from distrib.doctor.findings import Finding
from distrib.errors import DistribError
from distrib.launchers.failure import FAILED, PEER_LOST
from distrib.signals import follow_launcher
from distrib.world import World

FINDINGS = "findings.json"
COLLECTIVE_SECONDS = 30.0


def main(argv: Sequence[str]) -> int:
    """Meets the other ranks, takes part in every check; rank 0 leaves the findings in the folder."""
    follow_launcher()
    world = World()
    try:
        world = World.from_env()
        folder = Path(argv[0])
        findings = meet_and_examine(world, folder, start=float(argv[1]))
    except DistribError as error:
        print(f"{FAILED.format(rank=world.rank)}\n{error}", file=sys.stderr)
        return error.exit_code
    except RuntimeError as error:
        from distrib.rendezvous import lost_peer

        if not lost_peer(error):
            raise
        return PEER_LOST
    if world.rank == 0:
        text = json.dumps([asdict(finding) for finding in findings])
        (folder / FINDINGS).write_text(text, encoding="utf-8")
    return 0


def meet_and_examine(world: World, folder: Path, *, start: float) -> list[Finding]:
    """`examine` in the world whose ranks have met. Raises `LaunchError` naming those that have not."""
    from distrib.rendezvous import meet

    world = meet(world, timeout=start, digest="doctor")
    log = folder / "logs" / f"rank-{world.rank}.log"
    return examine(replace(world.on_device(), collective_timeout=COLLECTIVE_SECONDS, log=log), folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
