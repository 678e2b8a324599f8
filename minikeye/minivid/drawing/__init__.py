"""What frames are painted from: pictures, backgrounds, things, cards, and what misleads in real footage."""
