"""aulait: fine-tune language models across institutions that cannot pool their text and do not own
the same machines."""

__version__ = "0.1.0"
