"""How sizes are written for people."""


def megabytes(nbytes: int) -> str:
    """Decimal megabytes, as file managers and the hub count them."""
    return f"{nbytes / 1e6:.2f} MB"
