"""HTTP and WebSocket routes: each parses, asks auth and one service, and shapes the answer. The rules are elsewhere."""
