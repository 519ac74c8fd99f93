"""The operator's page (commands: commands): rendered here, whole, without scripts."""
