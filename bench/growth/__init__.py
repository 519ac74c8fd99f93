"""What work costs in a database of 10^4, 10^6 and 10^7 messages (bench: growth)."""
