"""Hostile inputs: `inputs` says what one is, `bodies` has bodies by structure, the others have requests by caller."""
