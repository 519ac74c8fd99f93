"""The terms that hubs offer and other providers accept, and reports."""
