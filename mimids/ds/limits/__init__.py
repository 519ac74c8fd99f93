"""Rates, quotas and budgets: how much each device and each provider may use."""
