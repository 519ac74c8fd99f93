"""What a provider stores, one module for each subject; each SQL statement is in the function that runs it."""
