"""Arms against each other at equal training time, seed by seed."""
