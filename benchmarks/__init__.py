"""Quality and speed beside references; each module runs by itself: `python -m benchmarks.quality --help`."""
