"""Benchmarks: each module prints a table and, with --json FILE, writes it with what produced it."""
