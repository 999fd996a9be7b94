"""Commands of the repository: the demonstration and the benchmarks."""
