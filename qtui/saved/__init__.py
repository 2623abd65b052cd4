"""What leaves the screen for a file: tables of figures, plots, recipes, and their forms."""
