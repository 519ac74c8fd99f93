"""The targets: code that gets octets from outside."""

from typing import Final

from fuzz.target import Target
from fuzz.targets import commits, connections, http, keys_and_trees, ohttp, structs

TARGETS: Final[dict[str, Target]] = {
    target.name: target
    for module in (structs, keys_and_trees, commits, ohttp, http, connections)
    for target in module.TARGETS
}
