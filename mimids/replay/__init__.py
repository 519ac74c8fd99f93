"""The work of `mimids mls`: replay recorded groups, and print MLS objects as text."""
