"""Effects of all layers and formats from gradients."""
