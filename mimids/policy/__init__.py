"""Policy rules: from terms, group state, message and local sender to a refusal or None; pure functions."""
