#!/bin/bash
# LaMM on 16 nodes of 8 GPUs in a SLURM queue: a task for each GPU.
# Adapt the lines that end in "adapt" and hand in:  sbatch configs/cluster/slurm.sh
#SBATCH --job-name=lamm
#SBATCH --nodes=16                                                                          # adapt
#SBATCH --ntasks-per-node=8                                                                 # adapt
#SBATCH --gpus-per-node=8                                                                   # adapt
#SBATCH --cpus-per-task=8                                                                   # adapt
#SBATCH --time=24:00:00                                                                     # adapt
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=lamm-%j.log

set -euo pipefail
cd "$SLURM_SUBMIT_DIR"

CONFIG=${CONFIG:-configs/lamm_l.yaml}                                                       # adapt
RUN=${RUN:-runs/lamm_l}                                                                     # adapt
# module load cuda nccl                                                                     # adapt
source .venv/bin/activate                                                                   # adapt

# A run that has begun is gone on with; one without a checkpoint yet begins anew.
RESUME=()
if [[ -e $RUN/config.yaml ]]; then RESUME=(--resume); fi

# SLURM sends SIGTERM to the tasks ten minutes before the limit; lamm saves a checkpoint and ends
# with status 143. The job then goes back into the queue, and resumes when its turn comes.
STATUS=0
srun --kill-on-bad-exit=1 lamm pretrain "$CONFIG" to="$RUN" "${RESUME[@]}" || STATUS=$?
if [[ $STATUS -eq 143 ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$STATUS"
