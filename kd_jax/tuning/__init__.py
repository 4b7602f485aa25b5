"""Hyperparameter search on validation: what is searched, and the study that searches it, by Optuna."""
