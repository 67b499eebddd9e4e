"""Stores pictures, what is known of them, and their vectors; and finds them again."""
