"""Benchmarks of se_kernels: ``python -m benchmarks layer | network | photos | quick``."""
