#!/bin/bash
# Evaluate a gallery on two machines of eight GPUs: sbatch examples/slurm.sh
# srun starts one torchrun a machine, which starts a process a GPU; without GPUs leave out --gpus.
#SBATCH --job-name=mmga-eval
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=01:00:00
set -euo pipefail

features=${1:-$HOME/features}
processes=${SLURM_GPUS_ON_NODE:-8}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# The first machine that fails ends the job: the others would wait for it at the next meeting.
srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_NNODES" \
    --nproc-per-node "$processes" \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$head:29500" \
    -m mmga.eval -- \
    --query "$features/query.npz" \
    --gallery "$features/gallery.json" \
    --device cuda \
    --json "$features/report.json"
