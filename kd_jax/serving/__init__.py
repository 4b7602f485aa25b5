"""Exports a trained model as one program, and loads such a program."""
