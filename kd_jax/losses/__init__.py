"""Distillation methods: one file each, a factory of the file's name that returns a `base.KD`.

Arguments are the paper's hyperparameters in words, with the paper's values as defaults.
"""
