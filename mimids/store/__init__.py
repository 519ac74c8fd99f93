"""What a provider stores, one module for each subject; SQL stands in the function that runs it."""
