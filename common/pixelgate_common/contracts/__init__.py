"""What services say to each other, and nothing else: one module of pydantic classes per service."""
