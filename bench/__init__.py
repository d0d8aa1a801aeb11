"""`make bench`: our figures, each beside a floor or a peer of the same run. Nothing here is asserted."""
