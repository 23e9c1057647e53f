"""Parts of the larger benchmarks; none of them is run by itself."""
