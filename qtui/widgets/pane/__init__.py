"""The side pane: all about one layer."""
