"""Sends traffic to a server, and takes down what comes."""
