"""Limits: rates, quotas, budgets and sizes, for each device and each other provider."""
