"""The numbered revisions of the plugin's schema."""
