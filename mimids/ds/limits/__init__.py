"""Limits: rates, quotas, budgets and sizes, for each device and each other provider.

These modules count. The callers decide what is counted: `ds.devices.gate` for our devices, `ds.groups.hub` and
`ds.following.receiver` for other providers.
"""
