"""Servers that tests spawn: the product's own parts with tools that misbehave."""
