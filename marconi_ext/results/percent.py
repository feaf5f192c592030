"""Rates as all our figures give them."""


def percent(part: float, whole: float) -> float:
    """In %, to four digits; 0 of nothing is 0."""
    return round(100 * part / whole, 4) if whole else 0.0
