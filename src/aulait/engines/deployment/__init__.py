"""A federation between machines, without naming what carries its messages."""
