"""Benchmarks of kd_jax, alone or against other libraries. Only scripts import this package."""
