"""The terms between a hub and other providers, offered and accepted, and reports."""
