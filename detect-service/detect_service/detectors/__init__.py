"""Ways to find objects in pictures, behind one protocol."""
