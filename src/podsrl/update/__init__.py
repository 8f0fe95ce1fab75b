"""The update on kept rollouts: every prompt is read once, every kept token once."""
