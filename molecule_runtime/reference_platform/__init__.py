"""The bundled platform: what a canvas and its agents talk to, small enough to run on a laptop (contract 12).

Start reading at `app.py`, which names every part. The agent side of `molecule_runtime` and this package meet only on
the wire: neither imports the other.
"""
