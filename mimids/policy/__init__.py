"""Rules: (terms, state, message, local sender) to a verdict. Pure, and silent where a fact is not certain."""
