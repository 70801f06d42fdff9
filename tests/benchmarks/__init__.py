"""What a step costs, as ratios against peers that were timed in the same run: `python -m tests.benchmarks`."""
