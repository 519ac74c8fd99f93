"""The operator's web pages (http: operator): complete HTML without scripts, made from the database."""
