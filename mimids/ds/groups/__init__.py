"""Groups of a hub: sequencing, the public state of each branch, policy, and pages of messages.

`hub.LocalHub` sequences and reads; `judging.MlsJudge` judges messages by the states that `states.States` keeps;
`policy.GroupPolicy` applies the policy rules; `pages`, `branches` and `tree_layout` are functions.
"""
