"""Arms against each other at equal training time or equal steps, seed by seed."""
