#!/usr/bin/env bash
# One training job under Open MPI's mpirun, on the hosts of a file:
#   launch/mpirun.sh experiment=news strategy=ddp
# Arguments are distrib's settings; `distrib train --help` lists them.
set -euo pipefail

HOSTS=${HOSTS:-}                        # a file with `name slots=N` lines, as launch/hosts; empty: this machine
NUM_NODES=${NUM_NODES:-1}               # machines, the first ones of the file
NUM_PROCESSES=${NUM_PROCESSES:-2}       # on each machine: one per GPU, or a few on CPUs
INTERFACE=${INTERFACE:-}                # the network they share, as eth0 or 10.0.0.0/24; empty: mpirun chooses
PYTHON=${PYTHON:-python}                # with distrib installed, at the same path everywhere
MASTER=${MASTER:-}                      # where the ranks meet; empty: the first host of the file

options=(-np "$((NUM_NODES * NUM_PROCESSES))" --map-by "ppr:$NUM_PROCESSES:node" --bind-to none)
if [ -n "$HOSTS" ]; then
  first=$(sed 's/#.*//' "$HOSTS" | awk 'NF { print $1; exit }')
  options+=(--hostfile "$HOSTS" -x "MASTER_ADDR=${MASTER:-$first}")
fi
if [ -n "$INTERFACE" ]; then
  options+=(--mca btl_tcp_if_include "$INTERFACE" --mca oob_tcp_if_include "$INTERFACE")
fi
exec mpirun "${options[@]}" "$PYTHON" -m distrib train "$@"
