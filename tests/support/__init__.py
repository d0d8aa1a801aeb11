"""What tests share: a platform process with the user's side of it, and a host that spawns the server on raw pipes."""
