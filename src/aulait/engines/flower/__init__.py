"""The same run across machines, over Flower."""
