"""Mirrors of the numbers of a run in TensorBoard and MLflow."""
