"""The store of a provider, one module for each subject; each SQL statement is in the function that runs it."""
