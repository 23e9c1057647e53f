"""What other libraries have of the same, for the benchmarks beside this folder."""
