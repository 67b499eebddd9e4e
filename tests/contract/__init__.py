"""What the public API and the README promise."""
