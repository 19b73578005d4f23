#!/usr/bin/env bash
# One training job on the hosts of a file, started over ssh by distrib itself:
#   HOSTS=launch/hosts launch/ssh.sh experiment=news strategy=ddp
# Arguments are distrib's settings; `distrib train --help` lists them.
set -euo pipefail

HOSTS=${HOSTS:-launch/hosts}            # a file with `name slots=N` lines; more than NUM_NODES are a reserve
NUM_NODES=${NUM_NODES:-null}            # machines; null: all of the file
NUM_PROCESSES=${NUM_PROCESSES:-2}       # on each machine: one per GPU, or a few on CPUs
INTERFACE=${INTERFACE:-null}            # of the first host, as eth0; null: the first that all share
MAX_RESTARTS=${MAX_RESTARTS:-0}         # from the last checkpoint, when a rank or a host has died
PYTHON=${PYTHON:-python}                # with distrib installed; at the same path on every host

exec "$PYTHON" -m distrib train launcher=ssh "launcher.hosts='$HOSTS'" "launcher.num_nodes=$NUM_NODES" \
  "launcher.num_processes=$NUM_PROCESSES" "launcher.interface=$INTERFACE" \
  "launcher.max_restarts=$MAX_RESTARTS" "$@"
