"""Types, errors, names of registered parts, seeds, files and LoRA tensors: what every folder
needs."""
