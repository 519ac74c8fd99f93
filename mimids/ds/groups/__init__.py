"""Groups of a hub: sequencing, the public state of each branch, policy, and pages of messages.

`hub.LocalHub` answers send, receive, join and group-info; `sequencing` appends messages; `judging.MlsJudge` checks them
against the states that `states.States` keeps; `policy.GroupPolicy` applies the policy rules; `welcome_rows` checks and
stores Welcomes; `pages`, `branches` and `tree_layout` are functions.
"""
