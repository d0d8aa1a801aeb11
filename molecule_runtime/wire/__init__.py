"""What crosses HTTP and the WebSocket between a platform and an agent, as pydantic models.

One file per area, pinned by the golden JSON files in `tests/golden/`, which client tests and platform tests read
alike. Reading is lenient (unknown keys are ignored, `kind` and `type` both name a part); writing is exact.
"""
