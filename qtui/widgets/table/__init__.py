"""The layer table: rows, columns, order."""
