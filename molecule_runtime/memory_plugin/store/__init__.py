"""The plugin's tables and their migrations; the way into the database is the platform's."""
