"""Other formats tried on a layer: errors of weights and outputs, and KL where it matters."""
