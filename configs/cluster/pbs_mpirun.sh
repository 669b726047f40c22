#!/bin/bash
# LaMM on 16 nodes of 8 GPUs in a PBS queue, started by Open MPI: a process for each GPU.
# Adapt the lines that end in "adapt" and hand in:  qsub configs/cluster/pbs_mpirun.sh
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

# lamm reads its rank from Open MPI's variables, and the host of rank 0 from PBS_NODEFILE.
RANKS=$(($(sort -u "$PBS_NODEFILE" | wc -l) * GPUS))
# A run that has begun is gone on with; one without a checkpoint yet begins anew.
RESUME=()
if [[ -e $RUN/config.yaml ]]; then RESUME=(--resume); fi

# Ten minutes before the limit SIGTERM goes to every rank, and lamm saves a checkpoint.
LIMIT=${LIMIT:-$((24 * 3600 - 600))}                                                        # adapt
exec timeout --signal=TERM --kill-after=300 "$LIMIT" \
  mpirun -np "$RANKS" --map-by "ppr:$GPUS:node" -x PBS_NODEFILE -x PBS_JOBID -x PATH \
  --mca odls_base_sigkill_timeout 300 \
  lamm pretrain "$CONFIG" to="$RUN" "${RESUME[@]}"
