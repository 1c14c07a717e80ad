"""The files of a run: their schema, and how they are appended to, saved and read back."""
