"""SLURM: a script that is submitted and followed, and the steps it starts inside its allocation."""

from __future__ import annotations

from distrib.launchers.slurm.launcher import Slurm as Slurm
from distrib.launchers.slurm.parts import Servers as Servers
