"""Fuzzing: targets for every decoder and for signed commits. Fuzzing needs atheris, replaying does not (README.md)."""
