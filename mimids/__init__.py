"""A federated MLS Delivery Service for MIMI."""
