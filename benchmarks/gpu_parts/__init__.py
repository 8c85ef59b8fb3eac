"""The parts of `benchmarks/gpu.py`: each yields the rows of one table, one measurement after the other."""
