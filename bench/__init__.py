"""Benchmarks: each is a program, ``python -m bench.NAME``; README.md has what they measured."""
