"""Benchmarks: every part beside what users would take instead, and beside what the machine can do."""
