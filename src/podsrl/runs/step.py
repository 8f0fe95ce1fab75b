"""What n, m and the batch sizes come to in a step, in words."""

from podsrl.trl.config import PODSConfig


def step_in_words(config: PODSConfig, num_processes: int) -> str:
    """Return what is sampled, kept and trained on in a step, and what it costs over GRPO.

    Example: n = 64, m = 16 and 64 rows an update give "64 rollouts for each of 4 prompts a step, 16
    kept by max_variance: 64 rows an update; samples 4 times what GRPO 16/16 samples, and updates on
    as many".
    """
    n, m = config.num_rollouts or config.num_generations, config.num_generations
    at_a_time, in_turn = config.per_device_train_batch_size, config.gradient_accumulation_steps
    rows = at_a_time * in_turn * num_processes
    generations = config.steps_per_generation or in_turn
    steps = max(1, generations // in_turn) * config.num_iterations
    prompts = at_a_time * generations * num_processes / m
    how_often = "a step" if steps == 1 else f"every {steps} steps"
    at_most = "up to " if config.early_stop or config.sampling_rounds else ""
    sampled = f"{at_most}{n} rollouts for each of {prompts:g} prompts {how_often}"
    if n == m:
        return f"{sampled}, all kept: {rows} rows an update, as GRPO {m}/{m} has them"
    return (
        f"{sampled}, {_kept(config)} kept by {config.selection_rule}: {rows} rows an update; "
        f"samples {at_most}{n / m:.3g} times what GRPO {m}/{m} samples, and updates on as many"
    )


def _kept(config: PODSConfig) -> str:
    m, first = config.num_generations, config.num_generations_start
    if first is not None:
        return f"{first} to {m}"
    return f"{m} on average" if config.budget == "pooled" else str(m)
