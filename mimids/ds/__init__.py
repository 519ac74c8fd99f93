"""The Delivery Service itself: KeyPackages, sequencing, delivery, following; this package does not know HTTP."""
