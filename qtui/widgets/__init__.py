"""The widgets, one file each, by part of the screen."""
