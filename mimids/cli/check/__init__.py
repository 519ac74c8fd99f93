"""`mimids check`: find what is wrong with a provider, and say how to mend it."""
