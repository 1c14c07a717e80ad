"""Base models: loading, multi-LoRA layers, low-rank algebra, generation and export."""
