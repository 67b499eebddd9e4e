"""Tests of the whole system; what one service can show alone is tested beside it."""
