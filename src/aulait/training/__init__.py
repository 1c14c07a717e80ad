"""Batches, the trainer of many sites at once, per-record gradients and the split model."""
