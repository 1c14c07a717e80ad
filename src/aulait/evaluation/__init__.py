"""Held-out losses, task metrics and text metrics."""
