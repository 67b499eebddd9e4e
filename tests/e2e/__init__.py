"""All services as processes: what a person would do, and what can go wrong."""
