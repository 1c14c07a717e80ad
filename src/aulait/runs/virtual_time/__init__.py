"""The time that a real federation would have taken, by the cost model."""
