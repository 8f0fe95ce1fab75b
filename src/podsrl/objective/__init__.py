"""What the trainer minimises on the kept rollouts, when that is not TRL's own loss."""
