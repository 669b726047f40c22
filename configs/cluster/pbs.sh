#!/bin/bash
# LaMM on 16 nodes of 8 GPUs in a PBS queue, as ABCI's: one torchrun on each node, a rank on each GPU.
# Ranks that die are started again up to three times, without the queue.
# Adapt the lines that end in "adapt" and hand in:  qsub configs/cluster/pbs.sh
#PBS -N lamm
#PBS -q rt_HF                                                                               # adapt
#PBS -l select=16:mpiprocs=8                                                                # adapt
#PBS -l walltime=24:00:00                                                                   # adapt
#PBS -j oe
#PBS -r y

set -euo pipefail
cd "$PBS_O_WORKDIR"

CONFIG=${CONFIG:-configs/lamm_l.yaml}                                                       # adapt
RUN=${RUN:-runs/lamm_l}                                                                     # adapt
GPUS=${GPUS:-8}                                                                             # adapt
# module load cuda nccl hpcx                                                                # adapt
source .venv/bin/activate                                                                   # adapt

NODES=$(sort -u "$PBS_NODEFILE" | wc -l)
MASTER=$(head -n 1 "$PBS_NODEFILE")
PORT=$((20000 + ${PBS_JOBID%%.*} % 10000))

# A run that has begun is gone on with; one without a checkpoint yet begins anew.
RESUME=()
if [[ -e $RUN/config.yaml ]]; then RESUME=(--resume); fi

# Ten minutes before the limit SIGTERM goes to every rank, and lamm saves a checkpoint. torchrun
# kills ranks that take longer than this variable says (30 seconds in PyTorch that doesn't know it).
LIMIT=${LIMIT:-$((24 * 3600 - 600))}                                                        # adapt
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300
exec timeout --signal=TERM --kill-after=300 "$LIMIT" \
  mpirun -np "$NODES" --map-by ppr:1:node --bind-to none -x PATH -x TORCH_ELASTIC_SHUTDOWN_TIMEOUT \
  --mca odls_base_sigkill_timeout 300 \
  torchrun --nnodes "$NODES" --nproc-per-node "$GPUS" --max-restarts 3 \
  --rdzv-backend c10d --rdzv-endpoint "$MASTER:$PORT" --rdzv-id "$PBS_JOBID" \
  -m lamm pretrain "$CONFIG" to="$RUN" "${RESUME[@]}"
