"""KeyPackages: their stock, bearer tokens, and the OHTTP gateway and relay.

`stock.KeyPackageStock` takes uploads and hands KeyPackages out; `tokens` checks who may claim; `claims` has the types
of a claim's results, and `claiming` makes the claims of a transaction. `gateway` and `relay` are the two sides of
OHTTP. `contact_card` makes the card with which others find a user's KeyPackages.
"""
