"""How the gateway talks to the other services: one class for each."""
