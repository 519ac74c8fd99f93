"""Commands: parse, call one function, print one result."""
