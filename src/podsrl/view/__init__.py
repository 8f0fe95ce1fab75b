"""Every rollout of a run on one page."""
