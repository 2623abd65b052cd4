"""The recipe as commands change it, built-in recipes by name, recipe files: no tensors."""
