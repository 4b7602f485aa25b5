"""Compressors of trained models: other ways than distillation to make a model small. A factory returns a
`base.Compressor`, which packs the matrices of a model into arrays of fewer bytes.

On the command line, `low_rank(rank=8) + int8()` packs with the first, and what that has made with the second.
"""

from kd_jax import registry

registry.bind("compression", globals())
