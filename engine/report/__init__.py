"""Results for people and scripts: figures of a layer, JSON documents, tables as text."""
