"""Methods that need only the weight, which families apply as they round: one file per method."""
