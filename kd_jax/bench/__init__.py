"""Timings of kd_jax, alone or beside other libraries. Only scripts import it."""
