"""Above and below the table: score, progress, messages, keys, log."""
