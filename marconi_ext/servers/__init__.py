"""Starts SGLang servers and asks them."""
