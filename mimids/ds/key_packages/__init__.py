"""KeyPackages: their stock, bearer tokens, claims, and the OHTTP gateway and relay."""
