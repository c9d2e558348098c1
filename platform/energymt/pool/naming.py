"""What a user types about a pool."""

from __future__ import annotations

DEFAULT = "default"


def command(verb: str, pool: str) -> str:
    """`energymt pool VERB`, with the name of the pool unless it is the default one."""
    return f"`energymt pool {verb}`" if pool == DEFAULT else f"`energymt pool {verb} --name {pool}`"


def missing(pool: str, there: list[str]) -> str:
    """The sentence for a pool that is not there."""
    others = f" (up: {', '.join(there)})" if there else ""
    return f"There is no energy pool {pool} in this Ray{others}: start it by {command('up ESTIMATOR', pool)}."
