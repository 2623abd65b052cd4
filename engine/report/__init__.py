"""Documents of what was found: JSON, tables, figures of a layer by name."""
