"""What aulait changes in Flower's processes so that no shipped code runs."""
