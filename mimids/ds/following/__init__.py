"""Following: delivery between hub and followers, Welcomes, and recovery after a restore."""
