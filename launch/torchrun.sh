#!/usr/bin/env bash
# One training job under torchrun: on one machine as it is; on several, run it on each, with
#   NUM_NODES=4 NODE=0..3 MASTER=<host name of node 0> launch/torchrun.sh experiment=news strategy=ddp
# Arguments are distrib's settings; `distrib train --help` lists them.
set -euo pipefail

NUM_NODES=${NUM_NODES:-1}               # machines
NUM_PROCESSES=${NUM_PROCESSES:-2}       # on each machine: one per GPU, or a few on CPUs
MAX_RESTARTS=${MAX_RESTARTS:-0}         # from the last checkpoint, when a rank has died
PYTHON=${PYTHON:-python}                # with distrib installed
NODE=${NODE:-0}                         # this machine's number, from 0
MASTER=${MASTER:-127.0.0.1}             # where the ranks meet: node 0, reachable from all
PORT=${PORT:-29500}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

exec "$PYTHON" -m torch.distributed.run --nnodes "$NUM_NODES" --node-rank "$NODE" \
  --nproc-per-node "$NUM_PROCESSES" --master-addr "$MASTER" --master-port "$PORT" \
  --max-restarts "$MAX_RESTARTS" -m distrib train "$@"
