"""What `benchmarks/faults.py` tries: one module per family of faults."""
