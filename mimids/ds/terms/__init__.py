"""Terms between hub and followers, and reports."""
