"""What happens when more is asked than can be done at once."""
