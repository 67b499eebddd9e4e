"""HTTP only: one module for each part of the public API."""
