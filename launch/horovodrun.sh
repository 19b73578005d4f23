#!/usr/bin/env bash
# One training job under horovodrun (gloo), on the hosts of a file:
#   launch/horovodrun.sh experiment=news strategy=horovod
# Arguments are distrib's settings; `distrib train --help` lists them.
set -euo pipefail

HOSTS=${HOSTS:-}                        # a file with `name slots=N` lines, as launch/hosts; empty: this machine
NUM_NODES=${NUM_NODES:-1}               # machines, the first ones of the file
NUM_PROCESSES=${NUM_PROCESSES:-2}       # on each machine: one per GPU, or a few on CPUs
INTERFACE=${INTERFACE:-}                # the network they share, as eth0; empty: horovodrun looks for it
PYTHON=${PYTHON:-python}                # with distrib and Horovod installed, at the same path everywhere
MASTER=${MASTER:-}                      # where the ranks meet; empty: the first host of the file

options=(--gloo -np "$((NUM_NODES * NUM_PROCESSES))")
if [ -n "$HOSTS" ]; then
  names=$(sed 's/#.*//' "$HOSTS" | awk -v n="$NUM_NODES" -v p="$NUM_PROCESSES" \
    'NF && k < n { printf "%s%s:%s", (k++ ? "," : ""), $1, p }')
  options+=(-H "$names")
  export MASTER_ADDR=${MASTER:-${names%%:*}}
fi
if [ -n "$INTERFACE" ]; then options+=(--network-interfaces "$INTERFACE"); fi
exec "$PYTHON" -m horovod.runner.launch "${options[@]}" "$PYTHON" -m distrib train "$@"
