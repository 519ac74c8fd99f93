"""The Delivery Service itself: KeyPackages, sequencing, delivery, following; nothing here knows HTTP."""
