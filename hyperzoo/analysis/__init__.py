"""Measure networks and draw figures; nothing here changes a network."""
