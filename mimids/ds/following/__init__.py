"""Exchanges between a hub and the providers that follow its groups.

As hub: `delivery.Delivery` pushes messages, `outgoing_welcomes.OutgoingWelcomes` sends Welcomes. As follower:
`following.Following` and `incoming_welcomes.IncomingWelcomes`. After a restore: the three `recovery` modules. The
delays between attempts come from `ds.backoff`.
"""
