"""HPKE, Binary HTTP and Oblivious HTTP. Pure: time and randomness are arguments."""
