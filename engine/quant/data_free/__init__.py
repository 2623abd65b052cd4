"""Methods that need the weight alone, which families follow as they round: one file a method."""
