#!/usr/bin/env bash
# Start one training job with torchrun: on one machine as it is, on several by running it on each with
#   NODES=4 NODE=0..3 MASTER=<host name of node 0> launch/torchrun.sh experiment=news strategy=ddp
# Arguments are distrib's settings; `distrib train --help` lists them.
set -euo pipefail

NODES=${NODES:-1}                       # machines
NODE=${NODE:-0}                         # this machine's number, from 0
PROCESSES=${PROCESSES:-2}               # processes on each machine: one per GPU, or a few on CPUs
MASTER=${MASTER:-127.0.0.1}             # where the ranks meet: node 0, reachable from all
PORT=${PORT:-29500}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

exec torchrun --nnodes "$NODES" --node-rank "$NODE" --nproc-per-node "$PROCESSES" \
  --master-addr "$MASTER" --master-port "$PORT" -m distrib train "$@"
