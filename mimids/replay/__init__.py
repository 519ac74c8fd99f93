"""What `mimids mls` does: replay recorded groups, and print MLS objects as text."""
