"""The memory plugin: memories in namespaces behind a small HTTP service (contract 7.4, schema 1.0.0).

A service of its own that any platform may use; the bundled one spawns it and talks to it by HTTP alone. It shares the
bundled platform's machinery (store, JSON, serving) and none of its tables.
"""
