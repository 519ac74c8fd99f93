"""KeyPackages: stock, tokens, claims, and the OHTTP gateway and relay."""
