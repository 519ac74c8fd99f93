"""Groups: sequencing, public state, branches and pages of messages."""
