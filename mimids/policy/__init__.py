"""Policy rules: pure functions of terms, group state, message and local sender that return a refusal or None."""
