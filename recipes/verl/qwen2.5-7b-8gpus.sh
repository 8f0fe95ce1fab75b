#!/usr/bin/env bash
# PODS on verl, one node of 8 GPUs: Qwen2.5-7B-Instruct, 64 prompts a step, 64 sampled, 16 kept.
# Not run by us. Expected on paper, not measured (8 x H100, 3000 tokens, seconds of sampling +
# update per step): GRPO 16/16 32 + 84, GRPO 64/64 84 + 337, PODS 64/16 84 + 84, PODS 32/8 42 + 42.
set -euo pipefail
DATA=${DATA:-$HOME/data/math}
exec "${PYTHON:-python3}" -m verl.trainer.main_ppo \
    trainer.v1.trainer_mode=pods_sync \
    +trainer.v1.pods.num_rollouts=64 \
    actor_rollout_ref.rollout.n=16 \
    data.train_files="$DATA/train.parquet" \
    data.val_files="$DATA/test.parquet" \
    data.train_batch_size=64 \
    data.max_prompt_length=1024 \
    data.max_response_length=8192 \
    algorithm.adv_estimator=grpo \
    actor_rollout_ref.model.path=Qwen/Qwen2.5-7B-Instruct \
    actor_rollout_ref.model.enable_gradient_checkpointing=True \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.ppo_mini_batch_size=64 \
    actor_rollout_ref.actor.use_dynamic_bsz=True \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=24576 \
    actor_rollout_ref.actor.use_kl_loss=False \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.6 \
    actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True \
    actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=49152 \
    trainer.n_gpus_per_node=8 \
    trainer.nnodes=1 \
    trainer.test_freq=20 \
    "$@"
