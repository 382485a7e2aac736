"""A bank of clean and backdoored networks, on which the verdict's rule is chosen and judged."""
