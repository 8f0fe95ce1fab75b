#!/usr/bin/env bash
# PODS on verl, one GPU: Qwen2.5-0.5B-Instruct on GSM8K, 32 rollouts sampled per prompt, 8 kept.
# Not run by us on a GPU. Data: verl's examples/data_preprocess/gsm8k.py. Environment: docs/verl.md.
# What to look at: timing_s/gen, timing_s/old_log_prob and timing_s/update_actor against the same
# command with trainer.v1.trainer_mode=sync and rollout.n=32 (GRPO 32/32): old_log_prob and
# update_actor should fall towards a quarter, gen stays.
set -euo pipefail
DATA=${DATA:-$HOME/data/gsm8k}
exec "${PYTHON:-python3}" -m verl.trainer.main_ppo \
    trainer.v1.trainer_mode=pods_sync \
    +trainer.v1.pods.num_rollouts=32 \
    actor_rollout_ref.rollout.n=8 \
    data.train_files="$DATA/train.parquet" \
    data.val_files="$DATA/test.parquet" \
    data.train_batch_size=64 \
    data.max_prompt_length=512 \
    data.max_response_length=1024 \
    algorithm.adv_estimator=grpo \
    actor_rollout_ref.model.path=Qwen/Qwen2.5-0.5B-Instruct \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.ppo_mini_batch_size=64 \
    actor_rollout_ref.actor.use_dynamic_bsz=True \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=24576 \
    actor_rollout_ref.actor.use_kl_loss=False \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.5 \
    actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True \
    actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=24576 \
    trainer.n_gpus_per_node=1 \
    trainer.nnodes=1 \
    trainer.total_training_steps=100 \
    trainer.test_freq=20 \
    "$@"
