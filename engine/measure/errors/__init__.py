"""The error of a recipe inside the model: outputs of layers, drift of blocks, attention."""
