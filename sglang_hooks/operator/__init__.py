"""What an operator may ask of a running server beyond numbers: explanations, pins, quotas, what a request may ask."""
