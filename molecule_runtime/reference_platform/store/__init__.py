"""Where the platform keeps its facts: tables, the engine with its two ways in, and the migrations."""
