"""N rollouts of a prompt that is read once, and completions for evaluation."""
