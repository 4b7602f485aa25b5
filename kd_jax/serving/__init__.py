"""A trained model exported as one program, and loaded again."""
