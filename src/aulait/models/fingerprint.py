"""A short name of a base, so that two machines can tell whether they hold the same one.

It looks at every weight's name and shape, at some of its values, at how the tokenizer cuts a fixed
text, and at its chat template; a quantised base is told by names, shapes and tokenizer alone.
"""

from __future__ import annotations

import hashlib

import torch

from aulait.models.loading import Base

LOOKED_AT = 64  # values at either end of every weight
TEXT = "Patient 17 was seen at 09:45; plan: naïve Bayes, 2 × 5 mg.\n\tdef f(x): return x ** 2"


def fingerprint(base: Base) -> str:
    """16 hexadecimal digits; equal for equal bases on any machine."""
    seen = hashlib.sha256(f"{base.config.kind}|{base.config.dtype}".encode())
    for name, weight in sorted(base.model.named_parameters()):
        seen.update(f"{name.replace('.inner.', '.')}|{tuple(weight.shape)}".encode())
        if weight.is_floating_point() and base.config.quant is None and not weight.is_meta:
            flat = weight.detach().reshape(-1)
            some = torch.cat([flat[:LOOKED_AT], flat[-LOOKED_AT:]]).to("cpu", torch.float32)
            seen.update(some.numpy().tobytes())
    seen.update(str(base.tokenizer(TEXT)["input_ids"]).encode())
    if template := getattr(base.tokenizer, "chat_template", None):
        seen.update(str(template).encode())
    return seen.hexdigest()[:16]
