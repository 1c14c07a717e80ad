"""The study of fine-tuning at the edge: MFU, energy and granularity."""
