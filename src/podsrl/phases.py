"""The phases of a training step, whose seconds are measured, written and reported by name."""

PHASES = ("sampling", "rewards", "selection", "update")
"""In the order of a step. A metric `time/PHASE_seconds` and a key of result.json bear the name."""
