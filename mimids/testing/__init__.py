"""Real providers in a test, alone or federated."""
