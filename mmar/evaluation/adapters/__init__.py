"""MMAR in other people's benchmarks. Each adapter needs their package and is imported by it, or in a process of its own."""
