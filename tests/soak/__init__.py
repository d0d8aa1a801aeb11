"""A team that hands work to each other while everything is killed all the time; `python -m tests.soak` runs it."""
