"""The operator's page (DESIGN section 5): rendered here, whole, without scripts."""
