"""What bench_prepare prepares, and how it is measured."""
