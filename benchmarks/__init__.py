"""Measured ratios against a peer or a limit, each in one run: `python -m benchmarks.bench_NAME`."""
