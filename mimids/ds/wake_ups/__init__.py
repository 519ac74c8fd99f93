"""Waking devices that sleep: subscriptions, who is asleep, and the job that calls push services.

(semantics: waking-devices)
"""
