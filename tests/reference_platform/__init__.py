"""Tests of the bundled platform: the app in process on a real SQLite file, or served on a port of its own."""
