"""`mimids check`: find faults of a provider, and say how to fix them."""
